"""Which model gives the initial answers? The paper's Fixed and Evolving Initialization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

Model = TypeVar("Model")


@dataclass(frozen=True)
class Fixed:
    """The paper's Fixed Initialization: M_0, whose answers are sampled once, in iteration 1, and reused."""

    letter: str
    anew: ClassVar[bool] = False

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_0


@dataclass(frozen=True)
class Evolving:
    """The paper's Evolving Initialization: M_{n-1}, sampled anew in every iteration."""

    letter: str
    anew: ClassVar[bool] = True

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_prev
