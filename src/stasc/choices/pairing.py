"""Pairing and scoring: which initial answer a correction is paired with, and the rewards of each pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from stasc.errors import NonFiniteRewardError
from stasc.records import Answer, Pair, Question, Split
from stasc.tasks.rewards.interface import AnyReward, batched, is_batched

Pairing = Callable[[int, int], Iterable[int]]


def own(seen: int, n_init: int) -> Iterable[int]:
    """Returns the initial answer that the correction saw: Algorithm 1."""
    return (seen,)


def crossed(seen: int, n_init: int) -> Iterable[int]:
    """Returns every initial answer of the question, as the authors' released code does."""
    return range(n_init)


PAIRINGS: dict[str, Pairing] = {"own": own, "crossed": crossed}


def score(
    split: Split,
    y1: Sequence[Sequence[Answer]],
    y2: Sequence[Sequence[Sequence[Answer]]],
    reward: AnyReward,
    pairing: Pairing,
) -> list[Pair]:
    """Returns every pair (y1, y2) that `pairing` makes, ordered by question, correction, initial answer.

    Each answer is scored once, all of them in one call if the reward is batched.

    Args:
        y1: initial answers, [question][i].
        y2: corrections, [question][i][k], sampled after seeing y1[question][i].
    Raises: ValueError if a reward raises or is not in [0, 1], naming the question and the answer; it is a
        NonFiniteRewardError for NaN and infinity.
    """
    rated: list[_Rated] = []
    for x, initial, corrections in zip(split.questions, y1, y2, strict=True):
        rated += [_Rated(x, answer, f"initial answer {i}") for i, answer in enumerate(initial)]
        for seen, some in enumerate(corrections):
            rated += [_Rated(x, answer, f"correction {k} of initial answer {seen}") for k, answer in enumerate(some)]
    rewards = _rewards(reward, rated)
    pairs = []
    for x, initial, corrections in zip(split.questions, y1, y2, strict=True):
        r1 = [next(rewards) for _ in initial]
        for seen, some in enumerate(corrections):
            for k, answer in enumerate(some):
                r2 = next(rewards)
                pairs += [Pair(x, i, seen, k, initial[i], answer, r1[i], r2) for i in pairing(seen, len(initial))]
    return pairs


class _Rated(NamedTuple):
    question: Question
    answer: Answer
    name: str


def _rewards(reward: AnyReward, rated: Sequence[_Rated]) -> Iterator[float]:
    """Yields the reward of each answer. Raises: ValueError as `score` does."""
    scored, many = batched(reward), is_batched(reward)
    for group in [rated] if many else [[one] for one in rated]:
        try:
            rewards = scored([one.answer.text for one in group], [one.question.references for one in group])
        except Exception as error:  # a reward is anybody's code
            what = f"a batch of {len(group)} answers" if many else f"{group[0].name} to {group[0].question.name}"
            raise ValueError(
                f"the reward raised {type(error).__name__} for {what}: {error}; "
                "fix it, or set reward_errors=zero to count such answers 0"
            ) from error
        for one, value in zip(group, rewards, strict=True):
            if not 0 <= value <= 1:
                kind = ValueError if math.isfinite(value) else NonFiniteRewardError
                what = f"{one.name} to {one.question.name}"
                raise kind(f"the reward gave {value} for {what}; expected a number in [0, 1]")
            yield value
