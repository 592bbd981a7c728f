"""What several initial answers to a question come to without a correction: their majority, and whether one is right.

Self-consistency (Wang et al., arXiv 2203.11171) takes the answer that most samples give. So that it costs what a
correction costs, it takes k samples, which have as many tokens as one initial answer and its correction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from stasc.records import Pair
from stasc.reward import Reward, ZeroOnError, normalise

Words = Callable[[str], Sequence[str]]


def words_of(reward: Any) -> Words:
    """What of an answer the reward compares, normalised. Of one of your own: the whole answer, normalised."""
    inner = reward.reward if isinstance(reward, ZeroOnError) else reward
    return inner.words if isinstance(inner, Reward) else normalise


def affordable(pairs: Sequence[Pair]) -> int:
    """k: as many initial answers as have the tokens of one and its correction, on average over the pairs, rounded."""
    initial, correction = sum(pair.y1.tokens for pair in pairs), sum(pair.y2.tokens for pair in pairs)
    return max(1, round((initial + correction) / initial)) if initial else 1


def majority(answers: Sequence[Pair], words: Words) -> Pair:
    """The first pair whose initial answer has the words that most have; of as many, the first.

    Answers without words, such as those without the marker, have no vote.
    """
    given = [tuple(words(pair.y1.text)) for pair in answers]
    (winner, _), *_ = Counter(some for some in given if some).most_common(1) or [((), 0)]
    return answers[given.index(winner)]


def voted(pairs: Sequence[Pair], k: int, words: Words) -> list[float]:
    """For each pair, the reward of the majority of k initial answers to its question, of which its own is the first.

    After the last answer to a question comes its first one, so each is in as many votes as any other.
    """
    rewards = []
    for answers in _by_question(pairs):
        voters = min(k, len(answers))
        rewards += [majority([*answers[i:], *answers[:i]][:voters], words).r1 for i in range(len(answers))]
    return rewards


def describe(pairs: Sequence[Pair], correct_at: float, words: Words) -> dict[str, float]:
    """Fractions of the votes, or questions, that are right; nothing where each question has one initial answer."""
    questions = _by_question(pairs)
    samples = min(map(len, questions))
    if samples == 1:
        return {}
    k = min(affordable(pairs), samples)
    return {
        "samples": samples,
        "vote_k": k,
        "vote_acc": fmean(reward >= correct_at for reward in voted(pairs, k, words)),
        "vote_all_acc": fmean(majority(answers, words).r1 >= correct_at for answers in questions),
        "pass_acc": fmean(any(pair.r1 >= correct_at for pair in answers) for answers in questions),
    }


def _by_question(pairs: Sequence[Pair]) -> list[list[Pair]]:
    return [list(some) for _, some in groupby(pairs, key=lambda pair: pair.question.id)]
