"""The majority of several answers, worked out by hand."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest

from stasc.records import Answer, Pair, Question
from stasc.reward import ExactMatch, InAccuracy, ZeroOnError
from stasc.vote import affordable, describe, majority, voted, words_of

EXACT = ExactMatch("whole", None)
WORDS = EXACT.words


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
    assert majority(answers(*texts), WORDS).i == winner


def test_each_answer_begins_one_vote_of_k_and_is_in_k() -> None:
    """Right or not: Paris, Rome, Paris, Oslo. The votes of three: PRP, RPO, POP, OPR."""
    four = answers("Paris", "Rome", "Paris", "Oslo")
    assert voted(four, 3, WORDS) == [1.0, 0.0, 1.0, 0.0]
    assert voted(four, 1, WORDS) == [1.0, 0.0, 1.0, 0.0]
    assert voted(four, 4, WORDS) == [1.0, 1.0, 1.0, 1.0]
    assert voted(four, 9, WORDS) == voted(four, 4, WORDS)


def test_questions_vote_on_their_own() -> None:
    both = [*answers("Rome", "Rome", "Paris"), *answers("Oslo", "Oslo", "Rome", gold="Oslo", question="other")]
    assert voted(both, 3, WORDS) == [0.0] * 3 + [1.0] * 3


def test_two_votes_are_worth_what_one_answer_is() -> None:
    """Where two differ, the first is taken, and each is first once."""
    for texts in itertools.product(("Paris", "Rome", "Oslo"), repeat=4):
        pairs = answers(*texts)
        assert fmean(voted(pairs, 2, WORDS)) == fmean(pair.r1 for pair in pairs)


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
    assert describe(pairs, 1.0, WORDS) == {
        "samples": 4,
        "vote_k": 3,
        "vote_acc": 3 / 8,
        "vote_all_acc": 1 / 2,
        "pass_acc": 2 / 2,
    }


def test_one_answer_a_question_is_no_vote() -> None:
    assert describe([*answers("Paris"), *answers("Rome", question="other")], 1.0, WORDS) == {}


def test_answers_are_compared_as_the_reward_compares_them() -> None:
    final = InAccuracy("final", "Final Answer:")
    for reward in (final, ZeroOnError(final)):
        words = words_of(reward)
        assert words("It is Rome. Final Answer: the PARIS.") == words("Let me think.\nfinal answer: Paris") == ["paris"]
        assert not words("Paris")
    assert words_of(lambda answer, references: 1.0)("The PARIS!") == ["paris"]
