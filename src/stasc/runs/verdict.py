"""Why a pair is not trained on, in a few words, as pairs.jsonl says it."""

from __future__ import annotations

from collections.abc import Callable

from stasc.choices.filter import Lenient, Maintaining, Strict


def not_kept(keep: Callable[[float, float], bool] | None, r1: float, r2: float) -> str:
    """Why a filter did not keep a pair with these rewards."""
    return f"{_reason(keep, r1, r2)}: r1 {r1:.4g}, r2 {r2:.4g}"


def _reason(keep: Callable[[float, float], bool] | None, r1: float, r2: float) -> str:
    if isinstance(keep, Strict):
        return f"not better by more than {keep.margin:g}" if keep.margin else "not better"
    if isinstance(keep, Lenient):
        return "right, and made worse" if r1 >= keep.correct_at else "wrong, and not better"
    if isinstance(keep, Maintaining):
        return "right, and made wrong" if r1 >= keep.correct_at else "the initial answer is wrong"
    return "left out by the filter"
