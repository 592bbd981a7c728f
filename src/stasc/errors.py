"""Errors about numbers: everything that a model or a reward returns must be finite."""

from __future__ import annotations


class NonFiniteError(FloatingPointError):
    """A number that decides a result, such as a logit, a loss or a gradient, is NaN or infinite."""


class NonFiniteRewardError(NonFiniteError, ValueError):
    """A reward is NaN or infinite."""
