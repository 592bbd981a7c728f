"""Intervals and tests for accuracies of answers to the same questions.

This module knows neither runs nor settings. No result is NaN: constant data get bounds by the rule of three.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Array = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.8
MIN_CLUSTERS = 5  # with fewer, the variance between clusters is too uncertain
MIN_CHANGED = 6  # with fewer changed answers, no exact McNemar test reaches p < .05: 2 / 2**5 = .0625


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, degrees of freedom, 95 % interval and two-sided p-value against 0.

    `low` and `high` are None if the data allow no interval. `p` is never 0.
    """

    value: float
    se: float
    df: float
    low: float | None
    high: float | None
    p: float
    method: str


@dataclass(frozen=True)
class McNemar:
    """The change of `n` answers as fractions: `b` changed from wrong to right, `c` from right to wrong."""

    b: int
    c: int
    n: int
    difference: float
    se: float
    p: float
    low: float
    high: float

    @property
    def can_reach(self) -> bool:
        """Whether p < .05 was possible with this number of changed answers."""
        return self.b + self.c >= MIN_CHANGED


def p_values(value: Array, se: Array, df: Array, low: Array) -> Array:
    """Returns two-sided p-values of means: Student's t, or the rule of three for constant data (.05 at its bound)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        student = 2 * special.stdtr(df, -np.abs(value) / se)
        constant = np.exp(-3 * np.abs(value) / (value - low))
    found = np.where(se > 0, student, np.where(np.isnan(low) | (value == 0), 1.0, constant))
    return np.maximum(found, sys.float_info.min)


def proportion(right: int, n: int, method: str = "wilson") -> tuple[float, float]:
    """Returns the 95 % interval of a proportion, by Wilson's method or, if `exact`, by Clopper and Pearson's."""
    found = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method)  # type: ignore[arg-type]
    return float(found.low), float(found.high)


def mcnemar(b: int, c: int, n: int) -> McNemar:
    """Tests exactly whether answers change from wrong to right (`b` of `n`) as often as from right to wrong (`c`)."""
    difference = (b - c) / n
    se = math.sqrt(max(0.0, b + c - (b - c) ** 2 / n)) / n
    tail = 2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)) if b + c else 1.0
    half = quantile(n - 1) * se if se else rule_of_three(n)
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    return McNemar(b, c, n, difference, se, min(1.0, max(tail, sys.float_info.min)), low, high)


def quantile(df: float, share: float = CONFIDENCE) -> float:
    """Returns the half-width of a two-sided t interval in standard errors."""
    return float(stats.t.ppf((1 + share) / 2, df)) if df > 0 else math.inf


def rule_of_three(n: int, bound: float = 1.0) -> float:
    """Returns the half-width of a 95 % interval of `n` equal values, none of which can exceed `bound` in size."""
    return bound * min(1.0, 3 / n)


def is_constant(values: Array, axis: tuple[int, ...] | None = None) -> NDArray[np.bool_]:
    """Returns whether values are equal up to rounding."""
    return np.asarray(np.ptp(values, axis=axis) <= 1e-12 * np.maximum(1.0, np.abs(values).max(axis=axis)))


def reach(se: Array, df: Array, n: int, bound: float, method: str) -> tuple[Array, Array, NDArray[np.str_]]:
    """Returns standard errors, half-widths of intervals (NaN for none) and methods of means over `n` questions.

    A standard error that is 0 up to rounding becomes 0, with an interval by the rule of three.
    """
    if n < 2:
        return se, np.full(se.shape, math.nan), np.full(se.shape, "none: one question")
    constant = se <= 1e-12 * bound
    half = np.where(constant, rule_of_three(n, bound), special.stdtrit(df, (1 + CONFIDENCE) / 2) * se)
    return np.where(constant, 0.0, se), half, np.where(constant, "rule of three", method)


def clustered(values: Array, clusters: Sequence[object], bound: float = 1.0) -> Mean:
    """Returns the mean of paired differences, one for each question, with clusters of questions as the samples.

    Args:
        clusters: the cluster of each question.
        bound: the largest size that a difference could have.
    Raises: ValueError with fewer than five clusters.
    """
    n, value = len(values), float(values.mean())
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) < MIN_CLUSTERS:
        raise ValueError(
            f"{len(names)} clusters of questions: a clustered interval needs at least {MIN_CLUSTERS}; leave the "
            "clusters out, and report that the questions are not independent"
        )
    sums = np.bincount(member, weights=values - value)
    se, df = np.array(float(np.sqrt((sums**2).sum())) / n), len(names) - 1.0
    se, half, method = reach(se, np.array(df), n, bound, f"paired by question, {len(names)} clusters")
    p = p_values(np.array(value), se, np.array(df), value - half)
    return Mean(value, float(se), df, value - float(half), value + float(half), float(p), str(method))


def correlation(first: Array, second: Array) -> float | None:
    """Returns the correlation of two scores of the same questions, or None if either is constant."""
    if len(first) < 2 or is_constant(first) or is_constant(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def contrasts(signs: Array) -> Mapping[tuple[int, ...], Array]:
    """Returns the weights of the cells in each effect, by factor numbers: main effects first, then interactions.

    An effect is the mean over cells whose product of signs is 1 minus the mean over those where it is -1. An
    interaction of two factors is thus half the difference of differences.

    Args:
        signs: (cells, factors), -1 for the low level and 1 for the high one, with every combination equally often.
    """
    cells, factors = signs.shape
    return {
        chosen: np.prod(signs[:, chosen], axis=1) * 2 / cells
        for size in range(1, factors + 1)
        for chosen in combinations(range(factors), size)
    }


def detectable(se: float, df: float) -> float:
    """Returns the effect that a two-sided test at 5 % detects with a power of 80 %."""
    return (quantile(df) + float(stats.t.ppf(POWER, df))) * se


def questions_needed(delta: float, omega2: float, sigma2: float = 0.0, samples: int = 1) -> int:
    """Returns how many questions detect a paired difference `delta`, two-sided at 5 % with a power of 80 %.

    Args:
        omega2: variance over questions of the true difference.
        sigma2: sum of the variances of one sampled answer's score in the two runs.
        samples: answers sampled for each question.
    """
    normal = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
    return math.ceil(normal**2 * (omega2 + sigma2 / samples) / delta**2)


def pass_at_k(right: Array, n: int, k: int) -> Array:
    """Returns unbiased pass@k for questions with `right` of `n` answers right (Chen et al. 2021, arXiv 2107.03374)."""
    right = np.asarray(right, float)
    i = np.arange(n - k + 1, n + 1)
    missed = np.prod(np.clip(1 - right[:, None] / i, 0, 1), axis=1)  # C(n - c, k) / C(n, k)
    return np.where(n - right < k, 1.0, 1 - missed)
