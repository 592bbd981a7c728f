"""Intervals and tests for accuracies of answers to the same questions, in runs with several seeds.

Questions and training runs are both samples of what there could be, so an interval that is to hold for others counts
both. Nothing here knows of runs or settings, and no result is NaN: constant data have bounds by the rule of three.
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
MIN_CLUSTERS = 5  # with fewer, their variance says too little
MIN_CHANGED = 6  # with fewer answers that change, no exact McNemar test reaches p < .05: 2 / 2**5 = .0625


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error, degrees of freedom and 95 % interval. The bounds are None where none hold."""

    value: float
    se: float
    df: float
    low: float | None
    high: float | None
    method: str

    @property
    def p(self) -> float:
        """Two-sided, that the true mean is 0: by Student's t, or of constant data by the rule of three. Never 0."""
        low = math.nan if self.low is None else self.low
        return float(p_values(*(np.array(one) for one in (self.value, self.se, self.df, low))))


@dataclass(frozen=True)
class Paired(Mean):
    """A mean difference; `rho` is the correlation of its two sides, None where one of them is constant."""

    rho: float | None


@dataclass(frozen=True)
class McNemar:
    """How answers change: `b` of `n` for the better, `c` for the worse. Fractions."""

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
        """Whether p < .05 was possible, with so many answers that change."""
        return self.b + self.c >= MIN_CHANGED


def _positive(p: float) -> float:
    """Nothing is impossible, only less likely than floating point can say."""
    return max(p, sys.float_info.min)


def p_values(value: Array, se: Array, df: Array, low: Array) -> Array:
    """Returns two-sided p-values of means: Student's t, or the rule of three for constant data (.05 at its bound)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        student = 2 * special.stdtr(df, -np.abs(value) / se)
        constant = np.exp(-3 * np.abs(value) / (value - low))
    found = np.where(se > 0, student, np.where(np.isnan(low) | (value == 0), 1.0, constant))
    return np.maximum(found, sys.float_info.min)


def proportion(right: int, n: int, method: str = "wilson") -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's rule or `exact`, by Clopper's and Pearson's."""
    found = stats.binomtest(right, n).proportion_ci(CONFIDENCE, method)  # type: ignore[arg-type]
    return float(found.low), float(found.high)


def mcnemar(b: int, c: int, n: int) -> McNemar:
    """The exact test that answers change for the better (`b` of `n`) as often as for the worse (`c`)."""
    difference = (b - c) / n
    se = math.sqrt(max(0.0, b + c - (b - c) ** 2 / n)) / n
    p = min(1.0, _positive(2 * float(stats.binom.cdf(min(b, c), b + c, 0.5)))) if b + c else 1.0
    if se:
        half = quantile(n - 1) * se
        return McNemar(b, c, n, difference, se, p, max(-1.0, difference - half), min(1.0, difference + half))
    bound = min(1.0, 3 / n)  # the rule of three: no answer changed, or all did alike
    return McNemar(b, c, n, difference, se, p, max(-1.0, difference - bound), min(1.0, difference + bound))


def quantile(df: float, share: float = CONFIDENCE) -> float:
    """How many standard errors a two-sided interval reaches to either side."""
    return float(stats.t.ppf((1 + share) / 2, df)) if df > 0 else math.inf


def paired(first: Array, second: Array, clusters: Sequence[object] | None = None, bound: float = 1.0) -> Paired:
    """The mean of `first` minus `second`, of the same questions. `bound` is the largest difference there could be.

    With `clusters`, one for each question, questions of the same cluster are not taken for independent.

    Raises: ValueError with fewer than five clusters.
    """
    difference = np.asarray(first, float) - np.asarray(second, float)
    n, value = len(difference), float(difference.mean())
    if clusters is None:
        se, df, method = float(difference.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0, n - 1.0, "paired by question"
    else:
        names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        if len(names) < MIN_CLUSTERS:
            raise ValueError(
                f"{len(names)} clusters of questions: an interval that allows for clusters needs at least "
                f"{MIN_CLUSTERS}; leave the clusters out, and say that the questions are not independent"
            )
        sums = np.bincount(member, weights=difference - value)
        se, df = float(np.sqrt((sums**2).sum())) / n, len(names) - 1.0
        method = f"paired by question, {len(names)} clusters"
    se, low, high, method = _bounds(value, se, df, n, bound, method)
    return Paired(value, se, df, low, high, method, _correlation(first, second))


def _correlation(first: Array, second: Array) -> float | None:
    if len(first) < 2 or _constant(first) or _constant(second):
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _constant(values: Array) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def _bounds(
    value: float, se: float, df: float, n: int, bound: float, method: str
) -> tuple[float, float | None, float | None, str]:
    """The standard error, 0 if rounding alone made it, the bounds, and what they rest on."""
    if n < 2:
        return se, None, None, "none: one question"
    if se <= 1e-12 * bound:
        return 0.0, value - bound * min(1.0, 3 / n), value + bound * min(1.0, 3 / n), "rule of three"
    half = quantile(df) * se
    return se, value - half, value + half, method


def contrasts(signs: Array) -> Mapping[tuple[int, ...], Array]:
    """The weights of cells that give each effect, by the factors' numbers: main effects first, then interactions.

    `signs` has a row for each cell and a column for each factor, -1 for its low level and 1 for the high one. All
    combinations are there, each as often as any other. An effect is the mean where the product of its signs is 1,
    minus the mean where it is -1; an interaction of two is so half the difference of differences.
    """
    cells, factors = signs.shape
    return {
        chosen: np.prod(signs[:, chosen], axis=1) * 2 / cells
        for size in range(1, factors + 1)
        for chosen in combinations(range(factors), size)
    }


def detectable(se: float, df: float) -> float:
    """The effect that would be told from 0, two-sided at 5 %, with a power of 80 %."""
    return (quantile(df) + float(stats.t.ppf(POWER, df))) * se


def questions_needed(delta: float, omega2: float, sigma2: float = 0.0, samples: int = 1) -> int:
    """How many questions it takes to tell a paired difference `delta` from 0, at 5 % with a power of 80 %.

    `omega2` is the variance over questions of the true difference, `sigma2` the sum of the variances of one sampled
    answer's score in the two runs, of which each question has `samples`.
    """
    normal = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
    return math.ceil(normal**2 * (omega2 + sigma2 / samples) / delta**2)


def pass_at_k(right: Array, n: int, k: int) -> Array:
    """The chance that one of k answers is right, where `right` of n were: unbiased (Chen et al. 2021, 2107.03374)."""
    right = np.asarray(right, float)
    i = np.arange(n - k + 1, n + 1)
    missed = np.prod(np.clip(1 - right[:, None] / i, 0, 1), axis=1)  # C(n - c, k) / C(n, k)
    return np.where(n - right < k, 1.0, 1 - missed)
