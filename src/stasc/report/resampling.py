"""What is found by drawing again, or by flipping signs: bootstrap intervals, p-values, and these for many at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from stasc.report.statistics import CONFIDENCE, Array

DRAWS = 10_000
SEED = 0
EXACT = 16  # questions that differ: up to so many, all sign flips are gone through
_AT_ONCE = 1000  # draws: what they need is counted in tens of megabytes


def pigeonhole(tables: Array, draws: int = DRAWS, seed: int = SEED) -> Array:
    """Means of tables (effects, questions, seeds) in which questions and seeds are drawn anew, a row for each draw.

    All tables share each draw, so that what is paired stays so (Owen 2007). One seed stays as it is.
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
    """The 95 % interval of bootstrap means."""
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def simultaneous(means: Array, values: Array) -> float:
    """How many standard errors each of several intervals needs so that, with 95 %, all of them hold: max-|t|."""
    spread = means.std(axis=0, ddof=1)
    varies = spread > 1e-12
    if not varies.any():
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    largest = (np.abs(means - values)[:, varies] / spread[varies]).max(axis=1)
    return float(np.quantile(largest, CONFIDENCE))


def sign_flip(differences: Array, draws: int = DRAWS, seed: int = SEED) -> Array:
    """Two-sided p-values that differences (effects, questions) are as often of either sign. Returns: (effects,).

    Exact where few questions differ, else from so many draws, the data themselves counted among them. All effects
    share each draw.
    """
    differences = differences[:, np.any(differences != 0, axis=0)]
    n = differences.shape[1]
    exact = n <= EXACT
    total, rng = 2**n if exact else draws, np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=1)) * (1 - 1e-12)  # sums in another order may round below it
    reached = np.zeros(len(differences))
    for begin in range(0, total, _AT_ONCE):
        size = min(_AT_ONCE, total - begin)
        bits = np.arange(begin, begin + size)[:, None] >> np.arange(n) & 1 if exact else rng.integers(0, 2, (size, n))
        reached += (np.abs((2.0 * bits - 1) @ differences.T) >= observed).sum(axis=0)
    return reached / total if exact else (reached + 1) / (total + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that the chance of any false one among them stays at the level (Holm 1979)."""
    order = np.argsort(p, kind="stable")
    scaled = np.asarray(p, float)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled)) if len(p) else scaled
    return [float(one) for one in adjusted]


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """p-values adjusted so that the share of false ones among those below the level stays at it."""
    return [float(one) for one in stats.false_discovery_control(p)] if len(p) else []
