"""Every number that leaves a model or a reward is finite, or an error."""

from __future__ import annotations


class NonFiniteError(FloatingPointError):
    """A number that decides a result, such as a logit, a reward, a loss or a gradient, is NaN or infinite."""


class NonFiniteRewardError(NonFiniteError, ValueError):
    """A reward is NaN or infinite."""
