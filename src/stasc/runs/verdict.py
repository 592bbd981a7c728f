"""Why the filter drops a pair, in a few words, as pairs.jsonl says it."""

from __future__ import annotations

from stasc.choices.filter import Lenient, Maintaining, Option, Strict


def not_kept(option: Option | None, r1: float, r2: float) -> str:
    """Returns why a filter did not keep a pair with these rewards."""
    return f"{_reason(option, r1)}: r1 {r1:.4g}, r2 {r2:.4g}"


def _reason(option: Option | None, r1: float) -> str:
    if isinstance(option, Strict):
        return f"not better by more than {option.margin:g}" if option.margin else "not better"
    if isinstance(option, Lenient):
        return "right, and made worse" if r1 >= option.correct_at else "wrong, and not better"
    if isinstance(option, Maintaining):
        return "right, and made wrong" if r1 >= option.correct_at else "the initial answer is wrong"
    return "left out by the filter"
