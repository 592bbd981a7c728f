"""Why a pair is not trained on, in words."""

from __future__ import annotations

import pytest

from stasc.choices.filter import All, Lenient, Maintaining, Strict
from stasc.runs.verdict import not_kept


@pytest.mark.parametrize(
    ("keep", "r1", "r2", "told"),
    [
        (Strict(0.0), 1.0, 0.0, "not better: r1 1, r2 0"),
        (Strict(0.0), 1.0, 1.0, "not better: r1 1, r2 1"),
        (Strict(0.25), 0.5, 2 / 3, "not better by more than 0.25: r1 0.5, r2 0.6667"),
        (Lenient(0.0, 1.0), 1.0, 0.0, "right, and made worse: r1 1, r2 0"),
        (Lenient(0.0, 1.0), 0.0, 0.0, "wrong, and not better: r1 0, r2 0"),
        (Lenient(0.0, 0.5), 0.5, 0.25, "right, and made worse: r1 0.5, r2 0.25"),
        (Maintaining(1.0), 0.0, 1.0, "the initial answer is wrong: r1 0, r2 1"),
        (Maintaining(1.0), 1.0, 0.0, "right, and made wrong: r1 1, r2 0"),
        (All(), 0.0, 0.0, "left out by the filter: r1 0, r2 0"),
        (lambda r1, r2: False, 0.0, 1.0, "left out by the filter: r1 0, r2 1"),
    ],
)
def test_a_dropped_pair_is_told_by_its_filters_rule(keep, r1: float, r2: float, told: str) -> None:  # type: ignore[no-untyped-def]
    assert not_kept(keep, r1, r2) == told
