"""Which initial answer is a correction paired with?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from stasc.errors import NonFiniteRewardError
from stasc.records import Answer, Pair, Question, Split

Reward = Callable[[str, Sequence[str]], float]
Pairing = Callable[[int, int], Iterable[int]]


def own(seen: int, n_init: int) -> Iterable[int]:
    """The initial answer that the correction saw: Algorithm 1."""
    return (seen,)


def crossed(seen: int, n_init: int) -> Iterable[int]:
    """Every initial answer of the question, as the authors' released code does."""
    return range(n_init)


PAIRINGS: dict[str, Pairing] = {"own": own, "crossed": crossed}


def score(
    split: Split,
    y1: Sequence[Sequence[Answer]],
    y2: Sequence[Sequence[Sequence[Answer]]],
    reward: Reward,
    pairing: Pairing,
) -> list[Pair]:
    """Every pair (y1, y2) that `pairing` makes, with its rewards, ordered by question, initial answer, correction.

    Args:
        y1: initial answers, [question][i].
        y2: corrections, [question][i][k], sampled after seeing y1[question][i].
    Raises: ValueError if a reward raises or is not in [0, 1], naming the question and the answer; it is a
        NonFiniteRewardError for NaN and infinity.
    """
    pairs = []
    for question, initial, corrections in zip(split.questions, y1, y2, strict=True):
        r1 = [_rated(reward, question, answer, f"initial answer {i}") for i, answer in enumerate(initial)]
        for seen, seen_corrections in enumerate(corrections):
            for k, correction in enumerate(seen_corrections):
                r2 = _rated(reward, question, correction, f"correction {k} of initial answer {seen}")
                pairs += [
                    Pair(question, i, seen, k, initial[i], correction, r1[i], r2) for i in pairing(seen, len(initial))
                ]
    return pairs


def _rated(reward: Reward, question: Question, answer: Answer, name: str) -> float:
    try:
        value = float(reward(answer.text, question.references))
    except Exception as error:  # a reward is anybody's code
        raise ValueError(
            f"the reward raised {type(error).__name__} for {name} to {question.name}: {error}; "
            "mend it, or set reward_errors=zero to count such answers 0"
        ) from error
    if not 0 <= value <= 1:
        kind = ValueError if math.isfinite(value) else NonFiniteRewardError
        raise kind(f"the reward gave {value} for {name} to {question.name}; expected a number in [0, 1]")
    return value
