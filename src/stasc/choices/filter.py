"""Is this pair kept for fine-tuning? The paper's Improving and Non-Decreasing Filters, and the released code's."""

from __future__ import annotations

from dataclasses import dataclass

from stasc.settings.check import expect, expect_correct_at


@dataclass(frozen=True)
class Strict:
    """The paper's Improving Filter: keep a correction that beats its initial answer by more than `margin`."""

    letter: str
    margin: float  # reward, 0..1

    def __post_init__(self) -> None:
        _check_margin(self.margin)

    def __call__(self, r1: float, r2: float) -> bool:
        return r2 - r1 > self.margin


@dataclass(frozen=True)
class Lenient:
    """The paper's Non-Decreasing Filter: what `Strict` keeps, and right answers that are not made worse."""

    letter: str
    margin: float  # reward, 0..1
    correct_at: float  # the reward from which an answer counts as right, 0..1

    def __post_init__(self) -> None:
        _check_margin(self.margin)
        expect_correct_at("filter.correct_at", self.correct_at)

    def __call__(self, r1: float, r2: float) -> bool:
        return r2 - r1 > self.margin or (r1 >= self.correct_at and r2 >= r1)


@dataclass(frozen=True)
class Maintaining:
    """Not in the paper: keep right answers that stay right, and no improvement.

    The authors' released code implements its non-decreasing filter this way, and their published curves were made
    with it.
    """

    letter: str
    correct_at: float  # the reward from which an answer counts as right, 0..1

    def __post_init__(self) -> None:
        expect_correct_at("filter.correct_at", self.correct_at)

    def __call__(self, r1: float, r2: float) -> bool:
        return r1 >= self.correct_at and r2 >= self.correct_at


@dataclass(frozen=True)
class All:
    """Not in the paper: keep every pair, as a run without a filter would."""

    letter: str

    def __call__(self, r1: float, r2: float) -> bool:
        return True


def _check_margin(margin: float) -> None:
    expect("filter.margin", margin, 0 <= margin < 1, "0 <= margin < 1, as rewards lie in [0, 1]")
