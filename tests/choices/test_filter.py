"""What each filter keeps: a truth table, fractional rewards, and how the filters relate."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from stasc.choices.filter import Lenient, Maintaining, Option, Strict, by_pair
from stasc.cli.parts import build
from stasc.records import Answer, Pair, Question

CONF = Path(__file__).parents[2] / "conf" / "filter"
Keep = Callable[[float, float], bool]

rewards = st.floats(0, 1)
margins = st.floats(0, 1, exclude_max=True)
thresholds = st.floats(0, 1, exclude_min=True)

# option: whether it keeps wrong -> wrong, wrong -> right, right -> wrong, right -> right
TRUTH_TABLE = {
    "strict": (False, True, False, False),
    "lenient": (False, True, False, True),
    "maintaining": (False, False, False, True),
    "all": (True, True, True, True),
}


def option(name: str) -> Keep:
    """The filter as configured, with the run's `correct_at` at 1."""
    return build(OmegaConf.create({"correct_at": 1.0, "filter": OmegaConf.load(CONF / f"{name}.yaml")}), "filter")


@pytest.mark.parametrize("name", TRUTH_TABLE)
def test_an_option_keeps_what_the_truth_table_says(name: str) -> None:
    keep = option(name)
    assert tuple(keep(r1, r2) for r1, r2 in [(0, 0), (0, 1), (1, 0), (1, 1)]) == TRUTH_TABLE[name]
    assert tuple(by_pair(keep)(pair(r1, r2)) for r1, r2 in [(0, 0), (0, 1), (1, 0), (1, 1)]) == TRUTH_TABLE[name]


def test_every_option_has_a_row() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(TRUTH_TABLE)


def pair(r1: float, r2: float, y1: str = "", y2: str = "") -> Pair:
    return Pair(Question("q", "?", ("a",)), 0, 0, 0, Answer(y1, 0), Answer(y2, 0), r1, r2)


class BetterAndShorter:
    def __call__(self, pair: Pair) -> bool:
        return pair.r2 > pair.r1 and len(pair.y2.text) < len(pair.y1.text)


def longer(pair: Pair, by: int = 1) -> bool:
    return len(pair.y2.text) >= len(pair.y1.text) + by


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        (BetterAndShorter(), [False, True, False]),
        (longer, [True, False, False]),
        (partial(longer, by=0), [True, False, True]),
        (lambda r1, r2: r2 > r1, [True, True, False]),
        (lambda r1, pair: r1 < pair, [True, True, False]),  # the first name decides
        (partial(Strict(0.5)), [True, True, False]),
        (operator.lt, [True, True, False]),
    ],
)
def test_a_filter_decides_on_two_rewards_or_on_a_pair(option: Option, kept: list[bool]) -> None:
    pairs = [pair(0, 1, "a", "abc"), pair(0, 1, "abc", "a"), pair(1, 1)]
    assert [by_pair(option)(one) for one in pairs] == kept


@pytest.mark.parametrize(
    ("r1", "r2", "strict", "lenient", "maintaining"),
    [
        (0.25, 0.5, True, True, False),  # better, still wrong
        (0.5, 0.25, False, False, False),  # worse
        (0.5, 0.5, False, False, False),  # as good, but wrong
        (0.0, 0.001, True, True, False),
        (0.999, 0.999, False, False, False),  # nearly right is not right
        (0.999, 1.0, True, True, False),
        (1.0, 0.999, False, False, False),
    ],
)
def test_fractional_rewards_improve_by_any_amount_and_are_right_at_1_only(
    r1: float, r2: float, strict: bool, lenient: bool, maintaining: bool
) -> None:
    assert option("strict")(r1, r2) is strict
    assert option("lenient")(r1, r2) is lenient
    assert option("maintaining")(r1, r2) is maintaining


@pytest.mark.parametrize("keep", [Strict(0.25), Lenient(0.25, 1.0)])
def test_an_improvement_by_exactly_the_margin_is_not_kept(keep: Keep) -> None:
    assert not keep(0.25, 0.5)
    assert keep(0.25, 0.5 + 2**-20)
    assert not keep(0.5, 0.25)


def test_lenient_keeps_right_answers_that_improve_by_less_than_the_margin() -> None:
    assert Lenient(0.5, 0.75)(0.75, 1.0)
    assert not Strict(0.5)(0.75, 1.0)


def test_lenient_asks_a_right_answer_not_to_get_worse_even_if_it_stays_right() -> None:
    assert Lenient(0.0, 0.5)(0.75, 0.75)
    assert not Lenient(0.0, 0.5)(0.75, 0.5)


def test_maintaining_asks_a_right_answer_only_to_stay_right() -> None:
    assert Maintaining(0.5)(0.75, 0.5)
    assert not Maintaining(0.5)(0.75, 0.25)
    assert not Maintaining(0.5)(0.25, 0.75)


@pytest.mark.parametrize("keep", [Lenient(0.0, 0.5), Maintaining(0.5)])
def test_an_answer_is_right_from_correct_at_on(keep: Keep) -> None:
    assert keep(0.5, 0.5)
    assert not keep(0.5 - 2**-20, 0.5 - 2**-20)


@given(r1=rewards, r2=rewards, margin=margins, correct_at=thresholds)
def test_lenient_keeps_what_strict_keeps(r1: float, r2: float, margin: float, correct_at: float) -> None:
    assert Lenient(margin, correct_at)(r1, r2) or not Strict(margin)(r1, r2)


@given(r1=rewards, r2=rewards, margin=margins, correct_at=thresholds)
def test_what_lenient_keeps_beyond_strict_was_right_and_is_no_worse(
    r1: float, r2: float, margin: float, correct_at: float
) -> None:
    if Lenient(margin, correct_at)(r1, r2) and not Strict(margin)(r1, r2):
        assert r1 >= correct_at
        assert r2 >= r1


@given(r1=rewards, r2=rewards, margin=margins, correct_at=thresholds)
def test_no_filter_of_the_paper_keeps_a_correction_that_is_worse(
    r1: float, r2: float, margin: float, correct_at: float
) -> None:
    if r2 < r1:
        assert not Strict(margin)(r1, r2)
        assert not Lenient(margin, correct_at)(r1, r2)


@given(r1=rewards, r2=rewards, small=margins, large=margins)
def test_a_larger_margin_keeps_nothing_more(r1: float, r2: float, small: float, large: float) -> None:
    small, large = sorted((small, large))
    assert Strict(small)(r1, r2) or not Strict(large)(r1, r2)


@given(r1=st.sampled_from([0.0, 1.0]), r2=st.sampled_from([0.0, 1.0]), margin=margins, correct_at=thresholds)
def test_for_rewards_of_0_and_1_maintaining_is_lenient_without_the_improvements(
    r1: float, r2: float, margin: float, correct_at: float
) -> None:
    improved = r2 > r1
    expected = Lenient(margin, correct_at)(r1, r2) and not improved
    assert Maintaining(correct_at)(r1, r2) is expected


@pytest.mark.parametrize("margin", [-0.01, 1.0, 2.0, math.nan, math.inf])
@pytest.mark.parametrize("build", [lambda margin: Strict(margin), lambda margin: Lenient(margin, 1.0)])
def test_a_margin_out_of_range_is_refused_by_name(build: Callable[[float], Keep], margin: float) -> None:
    with pytest.raises(ValueError, match=rf"^filter\.margin={margin}: expected (a finite number, )?0 <= margin < 1"):
        build(margin)


@pytest.mark.parametrize("correct_at", [-1.0, 0.0, 1.01, math.nan, math.inf])
@pytest.mark.parametrize("build", [lambda value: Lenient(0.0, value), lambda value: Maintaining(value)])
def test_a_threshold_out_of_range_is_refused_by_name(build: Callable[[float], Keep], correct_at: float) -> None:
    with pytest.raises(
        ValueError, match=rf"^filter\.correct_at={correct_at}: expected (a finite number, )?0 < correct_at <= 1"
    ):
        build(correct_at)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    assert Strict(0.0)(0.0, 1.0)
    assert Strict(0.99)(0.0, 1.0)
    assert Lenient(0.0, 1.0)(1.0, 1.0)
    assert Maintaining(1e-9)(1e-9, 1e-9)
