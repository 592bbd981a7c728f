"""Metrics of a set of pairs: accuracies, the four transitions, and what the answers look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean

from stasc.records import NOT_ASKED, Answer, Pair


def describe(
    pairs: Sequence[Pair], correct_at: float, unmarked: Callable[[str], bool] | None = None
) -> dict[str, float]:
    """Returns fractions of the pairs, mean rewards and mean lengths in tokens.

    An answer is right if its reward is at least `correct_at`. `right_wrong` is the share of pairs whose initial answer
    is right and whose correction is wrong. `unmarked` tells whether an answer lacks the reward's marker.
    """
    right = [(pair.r1 >= correct_at, pair.r2 >= correct_at) for pair in pairs]
    return {
        "questions": len({pair.question.id for pair in pairs}),
        "pairs": len(pairs),
        "init_acc": fmean(first for first, _ in right),
        "corr_acc": fmean(second for _, second in right),
        "right_right": fmean(both == (True, True) for both in right),
        "right_wrong": fmean(both == (True, False) for both in right),
        "wrong_right": fmean(both == (False, True) for both in right),
        "wrong_wrong": fmean(both == (False, False) for both in right),
        "init_reward": fmean(pair.r1 for pair in pairs),
        "corr_reward": fmean(pair.r2 for pair in pairs),
        **_looks("init", [pair.y1 for pair in pairs]),
        **_looks("corr", [pair.y2 for pair in pairs]),
        "corr_not_asked": fmean(pair.y2 == NOT_ASKED for pair in pairs),
        **({"init_unmarked": fmean(unmarked(pair.y1.text) for pair in pairs)} if unmarked else {}),
        **({"corr_unmarked": fmean(unmarked(pair.y2.text) for pair in pairs)} if unmarked else {}),
    }


def _looks(name: str, answers: Sequence[Answer]) -> dict[str, float]:
    return {
        f"{name}_truncated": fmean(answer.truncated for answer in answers),
        f"{name}_empty": fmean(not answer.text.strip() for answer in answers),
        f"{name}_tokens": fmean(answer.tokens for answer in answers),
    }
