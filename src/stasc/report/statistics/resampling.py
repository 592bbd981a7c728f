"""Bootstrap intervals, sign-flip p-values, and adjustments for multiple comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from stasc.report.statistics.intervals import CONFIDENCE, Array

DRAWS = 10_000
SEED = 0
EXACT = 16  # with at most this many questions that differ, all sign flips are enumerated
_AT_ONCE = 1000  # draws, which take tens of megabytes


def pigeonhole(tables: Array, draws: int = DRAWS, seed: int = SEED) -> Array:
    """Returns bootstrap means (draws, effects) of tables (effects, questions, seeds): the pigeonhole (Owen 2007).

    Questions and seeds are resampled independently. All tables share each draw, which keeps them paired.
    """
    effects, n, seeds = tables.shape
    rng, means = np.random.default_rng(seed), np.empty((draws, effects))
    columns = tables.transpose(1, 0, 2).reshape(n, effects * seeds) / (n * seeds)
    for begin in range(0, draws, _AT_ONCE):
        size = min(_AT_ONCE, draws - begin)
        questions = rng.multinomial(n, np.full(n, 1 / n), size).astype(float)
        runs = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size).astype(float)
        sums = (questions @ columns).reshape(size, effects, seeds)
        means[begin : begin + size] = np.einsum("bes,bs->be", sums, runs)
    return means


def percentiles(means: Array) -> tuple[float, float]:
    """Returns the 95 % percentile interval of bootstrap means."""
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def simultaneous(means: Array, values: Array) -> float:
    """Returns the half-width, in standard errors, at which several intervals hold jointly with 95 %: max-|t|."""
    spread = means.std(axis=0, ddof=1)
    varies = spread > 1e-12
    if not varies.any():
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    largest = (np.abs(means - values)[:, varies] / spread[varies]).max(axis=1)
    return float(np.quantile(largest, CONFIDENCE))


def sign_flip(differences: Array, draws: int = DRAWS, seed: int = SEED) -> Array:
    """Returns two-sided sign-flip p-values (effects,) of differences (effects, questions).

    The test is exact if few questions differ; otherwise it takes `draws` random flips, and counts the data as one more.
    All effects share each draw.
    """
    differences = differences[:, np.any(differences != 0, axis=0)]
    n = differences.shape[1]
    exact = n <= EXACT
    total, rng = 2**n if exact else draws, np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=1)) * (1 - 1e-12)  # sums in another order may be slightly smaller
    reached = np.zeros(len(differences))
    for begin in range(0, total, _AT_ONCE):
        size = min(_AT_ONCE, total - begin)
        bits = np.arange(begin, begin + size)[:, None] >> np.arange(n) & 1 if exact else rng.integers(0, 2, (size, n))
        reached += (np.abs((2.0 * bits - 1) @ differences.T) >= observed).sum(axis=0)
    return reached / total if exact else (reached + 1) / (total + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Returns p-values adjusted to control the family-wise error rate (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled)) if len(p) else scaled
    return [float(one) for one in adjusted]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Returns p-values adjusted to control the false discovery rate (Benjamini and Hochberg 1995)."""
    return [float(one) for one in stats.false_discovery_control(p)] if len(p) else []
