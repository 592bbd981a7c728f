"""Votes on several initial answers to a question: the majority's reward, and whether any answer is right.

Self-consistency (Wang et al., arXiv 2203.11171) takes the answer that most samples give. It takes k samples here, where
k samples have as many tokens as one initial answer and its correction, so both cost the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from stasc.records import Pair
from stasc.tasks.rewards import ZeroOnError, attribute

Key = Callable[[str], Hashable]

NO_KEY = (
    "the reward has no key, so that nothing tells which answers say the same, and no majority can be counted; give it "
    "an attribute `key`, a function of an answer's text whose results are equal for such answers, and None for one "
    "that says nothing"
)


def key_of(reward: Any) -> Key | None:
    """Returns the reward's `key`, which tells answers that say the same; None if it has none.

    With `reward_errors=zero`, an answer for which it raises has no vote; otherwise the error is a ValueError that
    names the answer.
    """
    key = attribute(reward, "key")
    if key is None:
        return None

    def checked(text: str) -> Hashable:
        try:
            value: Hashable = key(text)
            hash(value)
        except Exception as error:  # a reward is anybody's code
            if isinstance(reward, ZeroOnError):
                return None
            raise ValueError(f"the reward's key raised {type(error).__name__} for {text[:60]!r}: {error}") from error
        return value

    return checked


def affordable(pairs: Sequence[Pair]) -> int:
    """Returns k: how many initial answers have the tokens of one and its correction, on average, rounded."""
    initial, correction = sum(pair.y1.tokens for pair in pairs), sum(pair.y2.tokens for pair in pairs)
    return max(1, round((initial + correction) / initial)) if initial else 1


def majority(answers: Sequence[Pair], key: Key) -> Pair:
    """Returns the first pair whose initial answer has the most frequent key; ties go to the earlier key.

    Answers with an empty key, such as those without the marker, have no vote.
    """
    given = [key(pair.y1.text) for pair in answers]
    says_something = (some for some in given if some is not None and some not in ((), ""))
    (winner, _), *_ = Counter(says_something).most_common(1) or [(given[0], 0)]
    return answers[given.index(winner)]


def voted(pairs: Sequence[Pair], k: int, key: Key) -> list[float]:
    """Returns, for each pair, the reward of the majority of k initial answers, starting with its own.

    After the last answer to a question comes the first one, so all answers are in equally many votes.
    """
    rewards = []
    for answers in _by_question(pairs):
        voters = min(k, len(answers))
        rewards += [majority([*answers[i:], *answers[:i]][:voters], key).r1 for i in range(len(answers))]
    return rewards


def voted_by_all(pairs: Sequence[Pair], key: Key) -> list[float]:
    """Returns, for each pair, the reward of the majority of all initial answers to its question."""
    return [majority(answers, key).r1 for answers in _by_question(pairs) for _ in answers]


def describe(pairs: Sequence[Pair], correct_at: float, key: Key | None) -> dict[str, float]:
    """Returns the fractions of votes, and of questions, that are right; empty for one initial answer per question.

    Without a key, votes are left out.
    """
    questions = _by_question(pairs)
    samples = min(map(len, questions))
    if samples == 1:
        return {}
    votes: dict[str, float] = {}
    if key is not None:
        k = min(affordable(pairs), samples)
        votes = {
            "vote_k": k,
            "vote_acc": fmean(reward >= correct_at for reward in voted(pairs, k, key)),
            "vote_all_acc": fmean(majority(answers, key).r1 >= correct_at for answers in questions),
        }
    return {
        "samples": samples,
        **votes,
        "pass_acc": fmean(any(pair.r1 >= correct_at for pair in answers) for answers in questions),
    }


def _by_question(pairs: Sequence[Pair]) -> list[list[Pair]]:
    return [list(some) for _, some in groupby(pairs, key=lambda pair: pair.question.id)]
