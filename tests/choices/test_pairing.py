"""Which initial answer a correction is paired with, and the rewards of a pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stasc.choices.pairing import PAIRINGS, Pairing, crossed, own, score
from stasc.records import Answer, Pair, Question, Split
from stasc.tasks.rewards import ZeroOnError

ANSWERS = [  # and what a pattern of their names is
    ("y1 b 1", r"initial answer 1 to b \('B\?'\)"),
    ("y2 b 1 2", r"correction 2 of initial answer 1 to b \('B\?'\)"),
]
QUESTIONS = (Question("a", "A?", ("1",)), Question("b", "B?", ("2", "two")))


def answers(n_init: int, n_corr: int) -> tuple[list[list[Answer]], list[list[list[Answer]]]]:
    """y1 and y2 of QUESTIONS: `y1 a 0` is initial answer 0, `y2 a 0 2` the correction 2 that saw it."""
    y1 = [[Answer(f"y1 {question.id} {i}", 1) for i in range(n_init)] for question in QUESTIONS]
    y2 = [
        [[Answer(f"y2 {question.id} {i} {k}", 1) for k in range(n_corr)] for i in range(n_init)]
        for question in QUESTIONS
    ]
    return y1, y2


def constant(text: str, references: Sequence[str]) -> float:
    return 0.0


def by_table(text: str, references: Sequence[str]) -> float:
    """A reward of its own for each answer: 0.1 x i initially, 0.5 + 0.1 x seen + 0.01 x k for a correction."""
    stage, _, i, *k = text.split()
    return 0.1 * int(i) if stage == "y1" else 0.5 + 0.1 * int(i) + 0.01 * int(k[0])


def scored(n_init: int, n_corr: int, pairing: Pairing) -> list[Pair]:
    return score(Split("train", QUESTIONS), *answers(n_init, n_corr), constant, pairing)


def test_own_pairs_each_correction_with_the_answer_it_saw() -> None:
    pairs = scored(2, 3, own)
    assert [(pair.question.id, pair.i, pair.seen, pair.k) for pair in pairs] == [
        (question, i, i, k) for question in "ab" for i in (0, 1) for k in (0, 1, 2)
    ]
    assert len(pairs) == 12  # 2 questions x 2 x 3


def test_crossed_pairs_each_correction_with_every_initial_answer_of_its_question() -> None:
    pairs = scored(2, 3, crossed)
    assert len(pairs) == 24  # 2 questions x 2 x 2 x 3
    assert {(pair.question.id, pair.i, pair.seen, pair.k) for pair in pairs} == {
        (question, i, seen, k) for question in "ab" for i in (0, 1) for seen in (0, 1) for k in (0, 1, 2)
    }


@pytest.mark.parametrize("pairing", [own, crossed])
def test_indices_name_the_answers_of_a_pair(pairing: Pairing) -> None:
    for pair in scored(2, 3, pairing):
        assert pair.y1.text == f"y1 {pair.question.id} {pair.i}"
        assert pair.y2.text == f"y2 {pair.question.id} {pair.seen} {pair.k}"


def test_a_pair_is_named_by_its_question_and_answers() -> None:
    named = {pair.id for pair in scored(2, 3, own)}
    assert named == {f"{question}, answer {i}, correction {k}" for question in "ab" for i in (0, 1) for k in (0, 1, 2)}
    crosswise = [pair.id for pair in scored(2, 3, crossed)]
    assert len(set(crosswise)) == len(crosswise) == 24
    assert set(crosswise) - named == {
        f"{question}, answer {i}, correction {k} of answer {1 - i}"
        for question in "ab"
        for i in (0, 1)
        for k in range(3)
    }


@given(n_init=st.integers(1, 5), n_corr=st.integers(1, 5))
def test_crossed_contains_own_and_is_n_init_times_as_large(n_init: int, n_corr: int) -> None:
    owned, all_pairs = scored(n_init, n_corr, own), scored(n_init, n_corr, crossed)
    assert [pair for pair in all_pairs if pair.i == pair.seen] == owned
    assert len(all_pairs) == n_init * len(owned)
    assert len(set(all_pairs)) == len(all_pairs)


def test_own_and_crossed_are_the_same_for_one_initial_answer() -> None:
    assert scored(1, 4, own) == scored(1, 4, crossed)


@pytest.mark.parametrize("pairing", [own, crossed])
def test_r1_is_the_reward_of_the_initial_answer_of_the_pair_and_r2_that_of_its_correction(pairing: Pairing) -> None:
    pairs = score(Split("train", QUESTIONS), *answers(2, 3), by_table, pairing)
    for pair in pairs:
        assert pair.r1 == pytest.approx(0.1 * pair.i)
        assert pair.r2 == pytest.approx(0.5 + 0.1 * pair.seen + 0.01 * pair.k)


def test_an_answer_is_rated_against_the_references_of_its_question() -> None:
    seen = set()

    def reward(text: str, references: Sequence[str]) -> float:
        seen.add((text.split()[1], tuple(references)))
        return 1.0

    score(Split("train", QUESTIONS), *answers(1, 1), reward, own)
    assert seen == {("a", ("1",)), ("b", ("2", "two"))}


@pytest.mark.parametrize("pairing", [own, crossed])
def test_each_answer_is_rated_once(pairing: Pairing) -> None:
    rated: list[str] = []

    def reward(text: str, references: Sequence[str]) -> float:
        rated.append(text)
        return 0.0

    score(Split("train", QUESTIONS), *answers(2, 3), reward, pairing)
    assert len(rated) == len(set(rated)) == 2 * (2 + 2 * 3)


def test_rewards_become_floats() -> None:
    (pair, *_) = score(Split("train", QUESTIONS), *answers(1, 1), lambda text, references: True, own)
    assert (type(pair.r1), type(pair.r2)) == (float, float)


@pytest.mark.parametrize("value", [-0.01, 1.01, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("wrong", "name"), ANSWERS)
def test_a_reward_out_of_range_is_refused_and_the_answer_named(wrong: str, name: str, value: float) -> None:
    def reward(text: str, references: Sequence[str]) -> float:
        return value if text == wrong else 1.0

    with pytest.raises(ValueError, match=rf"reward gave {value} for {name}; expected a number in \[0, 1\]"):
        score(Split("train", QUESTIONS), *answers(2, 3), reward, own)


@pytest.mark.parametrize(("wrong", "name"), ANSWERS)
@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), OSError("disk"), RecursionError("deep"), None])
def test_a_reward_that_raises_is_refused_with_the_answer_and_the_way_out(
    wrong: str, name: str, error: Exception | None
) -> None:
    """Also one that gives no number."""

    def reward(text: str, references: Sequence[str]) -> float:
        if text == wrong and error:
            raise error
        return None if text == wrong else 1.0  # type: ignore[return-value]

    kind, text = (type(error).__name__, str(error)) if error else ("TypeError", "float")
    message = rf"reward raised {kind} for {name}: {text}.*set reward_errors=zero"
    with pytest.raises(ValueError, match=message) as raised:
        score(Split("train", QUESTIONS), *answers(2, 3), reward, own)
    assert raised.value.__cause__ is error or not error


def test_an_interrupt_in_a_reward_is_no_error_of_it() -> None:
    def reward(text: str, references: Sequence[str]) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(Split("train", QUESTIONS), *answers(1, 1), reward, own)


def test_answers_of_another_number_of_questions_are_refused() -> None:
    y1, y2 = answers(1, 1)
    with pytest.raises(ValueError, match="zip"):
        score(Split("train", QUESTIONS), y1[:1], y2, constant, own)
    with pytest.raises(ValueError, match="zip"):
        score(Split("train", QUESTIONS), y1, y2[:1], constant, own)


def test_the_setting_knows_both_pairings() -> None:
    assert dict(PAIRINGS) == {"own": own, "crossed": crossed}


def batched(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
    return [by_table(answer, some) for answer, some in zip(answers, references, strict=True)]


@pytest.mark.parametrize("pairing", [own, crossed])
def test_a_batched_reward_scores_all_answers_in_one_call(pairing: Pairing) -> None:
    calls: list[tuple[Sequence[str], Sequence[Sequence[str]]]] = []

    def reward(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
        calls.append((answers, references))
        return batched(answers, references)

    pairs = score(Split("train", QUESTIONS), *answers(2, 3), reward, pairing)
    assert pairs == score(Split("train", QUESTIONS), *answers(2, 3), by_table, pairing)
    ((texts, references),) = calls
    assert len(texts) == len(set(texts)) == 2 * (2 + 2 * 3)
    assert [*references] == [question.references for question in QUESTIONS for _ in range(2 + 2 * 3)]


@pytest.mark.parametrize("value", [1.01, math.nan])
@pytest.mark.parametrize(("wrong", "name"), ANSWERS)
def test_a_batched_reward_out_of_range_names_the_answer(wrong: str, name: str, value: float) -> None:
    def reward(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
        return [value if answer == wrong else 1.0 for answer in answers]

    with pytest.raises(ValueError, match=rf"reward gave {value} for {name}; expected a number in \[0, 1\]"):
        score(Split("train", QUESTIONS), *answers(2, 3), reward, own)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            [1.0],
            "raised ValueError for a batch of 4 answers: 1 rewards for 4 answers; expected one for each; fix it, or",
        ),
        ([None] * 4, "raised TypeError for a batch of 4 answers: float"),
    ],
)
def test_a_batched_reward_gives_one_number_for_each_answer(result: Any, message: str) -> None:
    def reward(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
        return result

    with pytest.raises(ValueError, match=message):
        score(Split("train", QUESTIONS), *answers(1, 1), reward, own)


def test_a_batch_that_raises_is_scored_answer_by_answer_where_errors_count_0() -> None:
    def reward(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
        if "y2 b 0 0" in answers:
            raise ArithmeticError
        return [0.5] * len(answers)

    zero = ZeroOnError(reward)
    pairs = score(Split("train", QUESTIONS), *answers(1, 1), zero, own)
    assert [(pair.r1, pair.r2) for pair in pairs] == [(0.5, 0.5), (0.5, 0.0)]
    assert zero.pop_errors() == {"answers": 1, "first": "ArithmeticError for 'y2 b 0 0'"}
