"""Step 1, the initialisation: which model gives the initial answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from stasc.records import Model


class Init(Protocol):
    """Chooses the model that gives the initial answers.

    `anew` is an attribute because the loop needs it before it calls: a model that stays the same would, with the same
    noise, give the same answers again, so they are sampled once and reused.
    """

    @property
    def anew(self) -> bool:
        """Whether initial answers are sampled in every iteration, or in iteration 1 only."""

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        """Returns M_0 or M_{n-1}; for evaluation, `m_prev` is the M_n that is evaluated."""


@dataclass(frozen=True)
class Fixed:
    """The paper's Fixed Initialization: M_0, whose answers are sampled once, in iteration 1, and reused."""

    anew: ClassVar[bool] = False

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_0


@dataclass(frozen=True)
class Evolving:
    """The paper's Evolving Initialization: M_{n-1}, sampled anew in every iteration."""

    anew: ClassVar[bool] = True

    def __call__(self, m_0: Model, m_prev: Model) -> Model:
        return m_prev
