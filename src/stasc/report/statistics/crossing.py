"""Means over questions and seeds, both random: intervals for other questions and other training runs.

A few seeds estimate the variance between training runs poorly, so that variance is also pooled over several tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stasc.report.statistics.intervals import Array, Mean, is_constant, p_values, reach


@dataclass(frozen=True)
class Components:
    """The variance components of a table of questions x seeds: question, seed and residual."""

    question: float
    seed: float
    residual: float


@dataclass(frozen=True)
class Pool:
    """Mean squares of seeds and residuals, with their degrees of freedom, pooled over the tables `of`."""

    seed: Array
    residual: Array
    df_seed: float
    df_residual: float
    of: str

    def times(self, squares: Array) -> Pool:
        """Returns the pool for weighted sums of these tables, given each sum's sum of squared weights."""
        times = np.multiply.outer
        return replace(self, seed=times(self.seed, squares), residual=times(self.residual, squares))

    def plus(self, other: Pool) -> Pool:
        """Returns the pool for the difference of two tables, one from each pool."""
        free = min(self.df_seed, other.df_seed), min(self.df_residual, other.df_residual)
        return Pool(self.seed + other.seed, self.residual + other.residual, *free, self.of)


@dataclass(frozen=True)
class Crossed(Mean):
    """A mean over questions and seeds, with the contribution of each to its standard error.

    The squared contributions add up to the squared standard error, unless that was raised to the larger component.
    `se_seed` is None with one seed: the variation between training runs is then unknown.
    """

    se_question: float
    se_seed: float | None
    parts: Components


@dataclass(frozen=True)
class Crossings:
    """Means of many tables at once, with the fields of `Crossed` as arrays. NaN bounds stand for no interval."""

    value: Array
    se: Array
    df: Array
    low: Array
    high: Array
    p: Array
    method: NDArray[np.str_]
    se_question: Array
    se_seed: Array | None
    parts: tuple[Array, Array, Array]

    def at(self, i: int) -> Crossed:
        """Returns the mean of the table at index `i`."""
        numbers = {name: float(getattr(self, name)[i]) for name in ("value", "se", "df", "p", "se_question")}
        low, high = (None if math.isnan(bound[i]) else float(bound[i]) for bound in (self.low, self.high))
        se_seed = None if self.se_seed is None else float(self.se_seed[i])
        parts = Components(*(float(part[i]) for part in self.parts))
        return Crossed(low=low, high=high, method=str(self.method[i]), se_seed=se_seed, parts=parts, **numbers)


def crossed(table: Array, bound: float = 1.0, pool: Pool | None = None) -> Crossed:
    """Returns the mean of one table of questions x seeds, as `crossings` does for many."""
    return crossings(table[None], bound, pool).at(0)


def crossings(tables: Array, bound: float = 1.0, pool: Pool | None = None) -> Crossings:
    """Returns the means of tables (..., questions, seeds) with intervals for other questions and training runs.

    The variance of a mean is (MS_question + MS_seed - MS_residual) / (n S), at least that of either component alone,
    with Satterthwaite's degrees of freedom. With one seed, it is that of the questions alone.

    A few seeds often underestimate MS_seed, and the interval then covers questions only. With a `pool`, a second
    interval takes MS_seed and MS_residual from it; the wider interval and the larger p are returned. The pool alone is
    not enough: runs share stages, so one table may vary more between seeds than others.

    Args:
        bound: the largest size that an entry could have; it sets the bounds of constant tables.
        pool: mean squares of seeds, from more tables than these.
    """
    n, seeds = tables.shape[-2:]
    constant = is_constant(tables, axis=(-2, -1))
    question, seed, residual = (np.where(constant, 0.0, one) for one in mean_squares(tables))
    if seeds == 1:
        df, method = np.full(question.shape, n - 1.0), "questions only: conditional on one training run"
        return _crossings(tables, question, df, (question, None, residual), bound, method)
    own = Pool(seed, residual, seeds - 1.0, (n - 1.0) * (seeds - 1), "")
    total = np.maximum(question + seed - residual, np.maximum(question, seed))
    df, method = _satterthwaite(total, question, own, n), "crossed: questions and seeds"
    found = _crossings(tables, total, df, (question, np.maximum(0.0, seed - residual), residual), bound, method)
    if pool is None or n < 2:
        return found
    excess = np.where(constant, 0.0, np.maximum(0.0, pool.seed - pool.residual))
    total = question + excess
    df, method = _satterthwaite(total, question, pool, n), f"{method}, seed variance pooled over {pool.of}"
    return _wider(found, _crossings(tables, total, df, (question, excess, residual), bound, method))


def _crossings(
    tables: Array, total: Array, df: Array, squares: tuple[Array, Array | None, Array], bound: float, method: str
) -> Crossings:
    """Builds the result from n S times the variance and the mean squares: questions, seed excess, residual."""
    value, (n, seeds) = tables.mean(axis=(-2, -1)), tables.shape[-2:]
    question, excess, residual = squares
    se, half, methods = reach(np.sqrt(total / (n * seeds)), df, n, bound, method)
    parts = (question, np.zeros_like(question), np.zeros_like(question))
    if excess is not None:
        parts = np.maximum(0.0, question - residual) / seeds, excess / n, residual
    low, high = value - half, value + half
    return Crossings(
        value=value,
        se=se,
        df=np.maximum(df, min(1.0, n - 1.0)),
        low=low,
        high=high,
        p=p_values(value, se, df, low),
        method=methods,
        se_question=np.sqrt(question / (n * seeds)),
        se_seed=None if excess is None else np.sqrt(excess / (n * seeds)),
        parts=parts,
    )


def _wider(own: Crossings, pooled: Crossings) -> Crossings:
    """Returns the wider of two intervals for each table, with the larger of their p-values."""
    takes = (pooled.high - pooled.low > own.high - own.low) & (own.se > 0)
    names = ("se", "df", "low", "high", "method", "se_seed")
    chosen = {name: np.where(takes, getattr(pooled, name), getattr(own, name)) for name in names}
    first, second, third = (np.where(takes, *both) for both in zip(pooled.parts, own.parts, strict=True))
    p = np.where(own.se > 0, np.maximum(own.p, pooled.p), own.p)
    return replace(own, **chosen, p=p, parts=(first, second, third))


def mean_squares(tables: Array) -> tuple[Array, Array, Array]:
    """Returns the mean squares of questions, seeds and residuals of each table of (..., questions, seeds)."""
    n, seeds = tables.shape[-2:]
    value = tables.mean(axis=(-2, -1), keepdims=True)
    rows, columns = tables.mean(axis=-1, keepdims=True), tables.mean(axis=-2, keepdims=True)
    question, seed, residual = (
        (part**2).sum(axis=(-2, -1)) for part in (rows - value, columns - value, tables - rows - columns + value)
    )
    free = max(1, n - 1), max(1, seeds - 1)
    return seeds * question / free[0], n * seed / free[1], residual / (free[0] * free[1])


def pooled_within(tables: Sequence[Array], of: str) -> Pool | None:
    """Pools the variance between seeds within several tables (..., questions, seeds).

    Returns: None unless two tables have several seeds.
    """
    tables = [table for table in tables if table.shape[-1] > 1]
    if len(tables) < 2:
        return None
    free = [table.shape[-1] - 1.0 for table in tables]
    squares = [mean_squares(table) for table in tables]
    seed, residual = (np.average([one[i] for one in squares], axis=0, weights=free) for i in (1, 2))
    return Pool(seed, residual, sum(free), sum(free) * max(1, tables[0].shape[-2] - 1), of)


def pooled_between(tables: Array, of: str) -> Pool | None:
    """Pools the variance between seeds over all contrasts of the cells in tables (..., cells, questions, seeds).

    In a full factorial, these are all main effects and interactions. The pool holds for contrasts whose squared weights
    add up to 1. Returns: None with one seed, or with fewer than three cells, which have a single contrast.
    """
    cells, n, seeds = tables.shape[-3:]
    if cells < 3 or seeds < 2:
        return None
    _, seed, residual = mean_squares(tables - tables.mean(axis=-3, keepdims=True))
    free = (cells - 1.0) * (seeds - 1)
    return Pool(seed.sum(axis=-1) / (cells - 1), residual.sum(axis=-1) / (cells - 1), free, free * max(1, n - 1), of)


def foreseen(parts: Components, n: int, seeds: int) -> float:
    """Returns the standard error that the mean over `n` questions and `seeds` seeds would have."""
    return math.sqrt(parts.question / n + parts.seed / seeds + parts.residual / (n * seeds))


def _satterthwaite(total: Array, question: Array, seeds: Pool, n: int) -> Array:
    """Returns the degrees of freedom of a sum of mean squares, at least those of the one with the fewest."""
    spread = question**2 / max(1, n - 1) + seeds.seed**2 / seeds.df_seed
    spread += seeds.residual**2 / max(1.0, seeds.df_residual)
    least = min(seeds.df_seed, max(1, n - 1))
    return np.maximum(least, total**2 / np.where(spread > 0, spread, math.inf))
