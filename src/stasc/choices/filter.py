"""Step 3, the filter: which pairs are kept for fine-tuning.

`Strict` and `Lenient` are the paper's Improving and Non-Decreasing Filter, `Maintaining` is the released code's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from stasc.records import Pair
from stasc.settings.calls import parameters
from stasc.settings.check import expect, expect_correct_at


class Filter(Protocol):
    """A filter as the algorithm calls it.

    An option of your own is called with `(pair)` if that is the name of its first parameter, otherwise with
    `(r1, r2)`, the rewards of the initial answer and of the correction, in [0, 1]. `by_pair` adapts the second form.
    """

    def __call__(self, pair: Pair) -> bool:
        """Returns whether to keep the pair, given its `question`, `y1`, `y2`, `r1` and `r2`."""


Option = Filter | Callable[[float, float], bool]


def by_pair(option: Option) -> Filter:
    """Returns the filter as a function of a pair."""
    if parameters(option)[:1] == ["pair"]:
        return option  # type: ignore[return-value]
    return lambda pair: option(pair.r1, pair.r2)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Strict:
    """The paper's Improving Filter: keeps a correction that beats its initial answer by more than `margin`."""

    margin: float  # reward, 0..1

    def __post_init__(self) -> None:
        _check_margin(self.margin)

    def __call__(self, r1: float, r2: float) -> bool:
        return r2 - r1 > self.margin


@dataclass(frozen=True)
class Lenient:
    """The paper's Non-Decreasing Filter: keeps what `Strict` keeps, and right answers that do not get worse."""

    margin: float  # reward, 0..1
    correct_at: float  # the reward from which an answer counts as right, 0..1

    def __post_init__(self) -> None:
        _check_margin(self.margin)
        expect_correct_at("filter.correct_at", self.correct_at)

    def __call__(self, r1: float, r2: float) -> bool:
        return r2 - r1 > self.margin or (r1 >= self.correct_at and r2 >= r1)


@dataclass(frozen=True)
class Maintaining:
    """Not in the paper: keeps right answers that stay right, and no improvement.

    The authors' released code implements its non-decreasing filter this way, and their published curves were made
    with it.
    """

    correct_at: float  # the reward from which an answer counts as right, 0..1

    def __post_init__(self) -> None:
        expect_correct_at("filter.correct_at", self.correct_at)

    def __call__(self, r1: float, r2: float) -> bool:
        return r1 >= self.correct_at and r2 >= self.correct_at


@dataclass(frozen=True)
class All:
    """Not in the paper: keeps every pair, as a run without a filter would."""

    def __call__(self, r1: float, r2: float) -> bool:
        return True


def _check_margin(margin: float) -> None:
    expect("filter.margin", margin, 0 <= margin < 1, "0 <= margin < 1, as rewards lie in [0, 1]")
