"""Which model does fine-tuning start from? The paper's Fixed and Evolving Fine-Tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

Model = TypeVar("Model")


@dataclass(frozen=True)
class Fixed:
    """The paper's Fixed Fine-Tuning: every iteration trains M_0."""

    letter: str

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_0


@dataclass(frozen=True)
class Evolving:
    """The paper's Evolving Fine-Tuning: every iteration goes on training M_{n-1}."""

    letter: str

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_prev
