"""What is reported of a set of pairs, worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stasc.records import Answer, Pair, Question
from stasc.runs.metrics import describe


def pair(question: str, r1: float, r2: float, y1: Answer | None = None, y2: Answer | None = None) -> Pair:
    some = Answer("some", 4)
    return Pair(Question(question, "?", ("x",)), 0, 0, 0, y1 or some, y2 or some, r1, r2)


# 8 pairs of 3 questions: 3 right -> right, 1 right -> wrong, 2 wrong -> right, 2 wrong -> wrong.
EIGHT = [
    pair("a", 1, 1, Answer("Paris", 2), Answer("Paris", 2)),
    pair("a", 1, 1, Answer("Paris", 2), Answer("", 1)),
    pair("a", 1, 1, Answer("Paris", 2), Answer(" \n\t", 3)),
    pair("b", 1, 0.5, Answer("Rome", 6), Answer("Rom", 9, truncated=True)),
    pair("b", 0, 1, Answer("", 1), Answer("Rome", 3)),
    pair("b", 0.5, 1, Answer("Ro", 5, truncated=True), Answer("Rome", 3)),
    pair("c", 0, 0, Answer("x", 3), Answer("y", 9, truncated=True)),
    pair("c", 0, 0, Answer("x", 3), Answer("y", 2)),
]


def test_eight_pairs_are_described_as_worked_out_by_hand() -> None:
    assert describe(EIGHT, correct_at=1.0) == pytest.approx(
        {
            "questions": 3,
            "pairs": 8,
            "init_acc": 4 / 8,
            "corr_acc": 5 / 8,
            "right_right": 3 / 8,
            "right_wrong": 1 / 8,
            "wrong_right": 2 / 8,
            "wrong_wrong": 2 / 8,
            "init_reward": 4.5 / 8,
            "corr_reward": 5.5 / 8,
            "init_truncated": 1 / 8,
            "init_empty": 1 / 8,
            "init_tokens": 24 / 8,
            "corr_truncated": 2 / 8,
            "corr_empty": 2 / 8,
            "corr_tokens": 32 / 8,
            "corr_not_asked": 0,
        }
    )


def test_an_answer_is_right_from_correct_at_on() -> None:
    half = describe(EIGHT, correct_at=0.5)
    assert (half["init_acc"], half["corr_acc"]) == (5 / 8, 6 / 8)
    assert (half["right_right"], half["right_wrong"], half["wrong_right"], half["wrong_wrong"]) == (
        5 / 8,
        0,
        1 / 8,
        2 / 8,
    )
    assert half["init_reward"] == 4.5 / 8


def test_a_wrong_answer_that_is_corrected_counts_as_wrong_right() -> None:
    described = describe([pair("a", 0, 1)], correct_at=1.0)
    assert (described["wrong_right"], described["right_wrong"]) == (1, 0)
    assert (described["init_acc"], described["corr_acc"]) == (0, 1)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1), st.floats(0.01, 1))
def test_the_transitions_add_up_to_the_accuracies_and_to_one(rewards: list[tuple[float, float]], right: float) -> None:
    described = describe([pair("a", r1, r2) for r1, r2 in rewards], right)
    assert math.isclose(described["right_right"] + described["right_wrong"], described["init_acc"], abs_tol=1e-12)
    assert math.isclose(described["right_right"] + described["wrong_right"], described["corr_acc"], abs_tol=1e-12)
    four = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")
    assert math.isclose(sum(described[name] for name in four), 1)
