"""Checks of the ranges of settings, with errors that name the setting as on the command line."""

from __future__ import annotations

import math


def expect(name: str, value: object, ok: bool, expected: str) -> None:
    """Checks a setting. Raises: ValueError unless `ok`, or if the value is NaN or infinite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value}: expected a finite number, {expected}")
    if not ok:
        raise ValueError(f"{name}={value}: expected {expected}")


def expect_correct_at(name: str, correct_at: float) -> None:
    """Checks the reward from which an answer counts as right: at 0, all answers would."""
    expect(name, correct_at, 0 < correct_at <= 1, "0 < correct_at <= 1, as rewards lie in [0, 1]")
