"""The majority of several answers, worked out by hand."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from statistics import fmean

import pytest

from stasc.records import Answer, Pair, Question
from stasc.runs.vote import affordable, describe, key_of, majority, voted, voted_by_all
from stasc.tasks.rewards import ExactMatch, InAccuracy, ZeroOnError

EXACT = ExactMatch("whole", None)
KEY = EXACT.key


def answers(*texts: str, gold: str = "Paris", question: str = "q", tokens: tuple[int, int] = (4, 4)) -> list[Pair]:
    """The initial answers to a question, each with a correction nobody looks at."""
    asked = Question(question, "?", (gold,))
    y2 = Answer("nobody looks at this", tokens[1])
    return [
        Pair(asked, i, i, 0, Answer(text, tokens[0]), y2, EXACT(text, asked.references), 0.0)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("texts", "winner"),
    [
        (["Rome"], 0),
        (["Rome", "Paris", "Paris"], 1),
        (["Rome", "PARIS!", "the paris"], 1),  # alike once normalised as the reward does
        (["Rome", "Paris"], 0),  # of as many, the first
        (["Rome", "Paris", "Oslo", "Paris", "Rome"], 0),
        (["", "?!", "Paris"], 2),  # what says nothing has no vote
        (["", "?!"], 0),
    ],
)
def test_the_answer_that_most_give_wins(texts: list[str], winner: int) -> None:
    assert majority(answers(*texts), KEY).i == winner


def test_each_answer_begins_one_vote_of_k_and_is_in_k() -> None:
    """Right or not: Paris, Rome, Paris, Oslo. The votes of three: PRP, RPO, POP, OPR."""
    four = answers("Paris", "Rome", "Paris", "Oslo")
    assert voted(four, 3, KEY) == [1.0, 0.0, 1.0, 0.0]
    assert voted(four, 1, KEY) == [1.0, 0.0, 1.0, 0.0]
    assert voted(four, 4, KEY) == [1.0, 1.0, 1.0, 1.0]
    assert voted(four, 9, KEY) == voted(four, 4, KEY)


def test_questions_vote_on_their_own() -> None:
    both = [*answers("Rome", "Rome", "Paris"), *answers("Oslo", "Oslo", "Rome", gold="Oslo", question="other")]
    assert voted(both, 3, KEY) == [0.0] * 3 + [1.0] * 3


def test_two_votes_are_worth_what_one_answer_is() -> None:
    """Where two differ, the first is taken, and each is first once."""
    for texts in itertools.product(("Paris", "Rome", "Oslo"), repeat=4):
        pairs = answers(*texts)
        assert fmean(voted(pairs, 2, KEY)) == fmean(pair.r1 for pair in pairs)


@pytest.mark.parametrize(
    ("tokens", "k"), [((4, 4), 2), ((4, 5), 2), ((4, 7), 3), ((10, 1), 1), ((2, 10), 6), ((0, 3), 1), ((3, 0), 1)]
)
def test_k_answers_have_the_tokens_of_an_answer_and_its_correction(tokens: tuple[int, int], k: int) -> None:
    assert affordable(answers("Paris", "Rome", tokens=tokens)) == k


def test_two_questions_are_described_as_worked_out_by_hand() -> None:
    """k is 3: an answer has 4 tokens, its correction 8.

    Of the first question, the votes are PPR, PRO, ROP and OPP, of which the first of three different ones counts:
    right, right, wrong, right. The second never is.
    """
    pairs = [
        *answers("Paris", "Paris", "Rome", "Oslo", tokens=(4, 8)),
        *answers("Rome", "Rome", "Rome", "Oslo", gold="Oslo", question="other", tokens=(4, 8)),
    ]
    assert describe(pairs, 1.0, KEY) == {
        "samples": 4,
        "vote_k": 3,
        "vote_acc": 3 / 8,
        "vote_all_acc": 1 / 2,
        "pass_acc": 2 / 2,
    }


def test_one_answer_a_question_is_no_vote() -> None:
    assert describe([*answers("Paris"), *answers("Rome", question="other")], 1.0, KEY) == {}


def test_the_vote_of_all_is_that_of_each_answer_to_its_question() -> None:
    both = [*answers("Rome", "Paris", "Paris"), *answers("Rome", "Oslo", gold="Oslo", question="other")]
    assert voted_by_all(both, KEY) == [1.0] * 3 + [0.0] * 2


def test_answers_are_compared_as_the_reward_compares_them() -> None:
    final = InAccuracy("final", "Final Answer:")
    for reward in (final, ZeroOnError(final)):
        key = key_of(reward)
        assert key
        assert key("It is Rome. Final Answer: the PARIS.") == key("Let me think.\nfinal answer: Paris") == ("paris",)
        assert not key("Paris")


def last_number(answer: str, references: Sequence[str]) -> float:
    """A reward of one's own, whose answers are the same if their last word is the same number."""
    return float(number(answer) == float(references[0]))


def number(answer: str) -> float | None:
    return float(answer.split()[-1]) if answer else None


class Numbers:
    key = staticmethod(number)

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        return last_number(answer, references)


def test_a_reward_of_ones_own_votes_by_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_number, "key", number, raising=False)
    for reward in (Numbers(), last_number, functools.partial(last_number), ZeroOnError(functools.partial(last_number))):
        key = key_of(reward)
        assert key
        given = answers("it is 4", "5", "4.0", "", "", "")
        assert majority(given, key).i == 0, "what has no key has no vote"
        assert majority(answers("5", "0", "0.0"), key).i == 1, "0 is a key like others"
        assert describe(given, 1.0, key).keys() >= {"vote_k", "vote_acc", "vote_all_acc", "pass_acc"}


def test_without_a_key_there_is_no_vote() -> None:
    assert key_of(lambda answer, references: 1.0) is None
    assert describe(answers("Paris", "Rome"), 1.0, None) == {"samples": 2, "pass_acc": 1.0}


def test_an_error_of_a_key_names_the_answer_or_is_no_vote() -> None:
    key = key_of(Numbers())
    assert key
    with pytest.raises(ValueError, match=r"the reward's key raised ValueError for 'no idea': could not"):
        key("no idea")
    lenient = key_of(ZeroOnError(Numbers()))
    assert lenient and lenient("no idea") is None


def test_a_key_that_cannot_be_counted_is_an_error() -> None:
    reward = Numbers()
    reward.key = lambda answer: [answer]  # type: ignore[assignment, method-assign, misc, return-value]
    key = key_of(reward)
    assert key
    with pytest.raises(ValueError, match="the reward's key raised TypeError"):
        key("4")
