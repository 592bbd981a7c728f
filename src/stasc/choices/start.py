"""Step 4, the start of fine-tuning: which model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from stasc.records import Model


class Start(Protocol):
    """Chooses the model that fine-tuning starts from."""

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        """Returns M_0 or M_{n-1}."""


@dataclass(frozen=True)
class Fixed:
    """The paper's Fixed Fine-Tuning: every iteration trains M_0."""

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_0


@dataclass(frozen=True)
class Evolving:
    """The paper's Evolving Fine-Tuning: every iteration continues to train M_{n-1}."""

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_prev
