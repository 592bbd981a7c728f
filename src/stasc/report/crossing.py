"""Means over questions and seeds, both taken as samples: for other questions, and for other training runs.

Few seeds say little of how training runs differ, so what several tables tell of it is pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stasc.report.statistics import CONFIDENCE, Array, Mean, p_values


@dataclass(frozen=True)
class Components:
    """The variances of an entry of a table of questions x seeds: of its question, its seed, and the rest."""

    question: float
    seed: float
    rest: float


@dataclass(frozen=True)
class Pool:
    """How seeds differ, from several tables of questions x seeds: their mean squares of seeds and of the rest.

    `of` names the tables. `df_seed` and `df_rest` are the degrees of freedom of both.
    """

    seed: Array
    rest: Array
    df_seed: float
    df_rest: float
    of: str

    def times(self, squares: Array) -> Pool:
        """For sums of these tables, each with weights of which the squares add up to so much: (..., sums)."""
        times = np.multiply.outer
        return replace(self, seed=times(self.seed, squares), rest=times(self.rest, squares))

    def plus(self, other: Pool) -> Pool:
        """For the difference of two tables, one of each pool."""
        free = min(self.df_seed, other.df_seed), min(self.df_rest, other.df_rest)
        return Pool(self.seed + other.seed, self.rest + other.rest, *free, self.of)


@dataclass(frozen=True)
class Crossed(Mean):
    """A mean over questions and seeds, and what each of these contributes to its standard error.

    Their squares add up to the whole's, unless that was raised to the larger of its parts. `se_seed` is None with one
    seed: what other training runs would give cannot be told.
    """

    se_question: float
    se_seed: float | None
    parts: Components
    larger_p: float  # of the two where seeds were pooled

    @property
    def p(self) -> float:
        return self.larger_p


@dataclass(frozen=True)
class Crossings:
    """Means of tables over questions and seeds, as in `Crossed`, for many tables at once. Bounds may be NaN: none."""

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
        """Of a list of tables, one's."""
        bounded = not math.isnan(self.low[i])
        return Crossed(
            value=float(self.value[i]),
            se=float(self.se[i]),
            df=float(self.df[i]),
            low=float(self.low[i]) if bounded else None,
            high=float(self.high[i]) if bounded else None,
            method=str(self.method[i]),
            se_question=float(self.se_question[i]),
            se_seed=None if self.se_seed is None else float(self.se_seed[i]),
            parts=Components(*(float(part[i]) for part in self.parts)),
            larger_p=float(self.p[i]),
        )


def crossed(table: Array, bound: float = 1.0, pool: Pool | None = None) -> Crossed:
    """The mean of a table of questions x seeds, for other questions and other training runs: see `crossings`."""
    return crossings(table[None], bound, pool).at(0)


def crossings(tables: Array, bound: float = 1.0, pool: Pool | None = None) -> Crossings:
    """The means of tables (..., questions, seeds), for other questions and other training runs.

    The variance of a mean is (MS_question + MS_seed - MS_rest) / (n S), at least that of either part alone, with
    Satterthwaite's degrees of freedom. With one seed, it is that of the questions alone. `bound` is the largest size
    that an entry could have; it sets the bounds of constant tables.

    Few seeds often show less variance than there is, and then this interval counts questions only. So where there is
    a `pool`, a second interval takes MS_seed and MS_rest from that, and the wider of both is returned, with the larger
    p. The pool alone would not do: training runs share stages, so seeds may vary more in one table than in others.
    """
    n, seeds = tables.shape[-2:]
    value = tables.mean(axis=(-2, -1))
    question, seed, rest = mean_squares(tables)
    constant = np.ptp(tables, axis=(-2, -1)) <= 1e-12 * np.maximum(1.0, np.abs(tables).max(axis=(-2, -1)))
    question, seed, rest = (np.where(constant, 0.0, one) for one in (question, seed, rest))
    if seeds == 1:
        told = "questions only: conditional on one training run"
        return _crossings(tables, value, question, np.full(value.shape, n - 1.0), (question, None, rest), bound, told)
    own = Pool(seed, rest, seeds - 1.0, (n - 1.0) * (seeds - 1), "")
    total = np.maximum(question + seed - rest, np.maximum(question, seed))
    df, told = _satterthwaite(total, question, own, n), "crossed: questions and seeds"
    found = _crossings(tables, value, total, df, (question, np.maximum(0.0, seed - rest), rest), bound, told)
    if pool is None or n < 2:
        return found
    excess = np.where(constant, 0.0, np.maximum(0.0, pool.seed - pool.rest))
    total = question + excess
    df, told = _satterthwaite(total, question, pool, n), f"{told}, what seeds add pooled over {pool.of}"
    return _wider(found, _crossings(tables, value, total, df, (question, excess, rest), bound, told))


def _crossings(
    tables: Array,
    value: Array,
    total: Array,
    df: Array,
    squares: tuple[Array, Array | None, Array],
    bound: float,
    told: str,
) -> Crossings:
    """From the variance of an entry's mean, and the mean squares of questions, of what seeds add, and of the rest."""
    n, seeds = tables.shape[-2:]
    question, excess, rest = squares
    se = np.sqrt(total / (n * seeds))
    se, half, method = _reach(se, df, n, bound, told)
    if excess is None:
        parts = question, np.zeros_like(question), np.zeros_like(question)
    else:
        parts = np.maximum(0.0, question - rest) / seeds, excess / n, rest
    low, high = value - half, value + half
    return Crossings(
        value=value,
        se=se,
        df=np.maximum(df, min(1.0, n - 1.0)),
        low=low,
        high=high,
        p=p_values(value, se, df, low),
        method=method,
        se_question=np.sqrt(question / (n * seeds)),
        se_seed=None if excess is None else np.sqrt(excess / (n * seeds)),
        parts=parts,
    )


def _reach(se: Array, df: Array, n: int, bound: float, told: str) -> tuple[Array, Array, NDArray[np.str_]]:
    """Standard errors, 0 where rounding alone made them; how far intervals reach, NaN for none; what they rest on."""
    if n < 2:
        return se, np.full(se.shape, math.nan), np.full(se.shape, "none: one question")
    constant = se <= 1e-12 * bound
    half = np.where(constant, bound * min(1.0, 3 / n), special.stdtrit(df, (1 + CONFIDENCE) / 2) * se)
    return np.where(constant, 0.0, se), half, np.where(constant, "rule of three", told)


def _wider(own: Crossings, pooled: Crossings) -> Crossings:
    """For each table the wider of two intervals, and the larger of their p-values."""
    assert own.se_seed is not None and pooled.se_seed is not None
    takes = (pooled.high - pooled.low > own.high - own.low) & (own.se > 0)

    def choose(one: Array, other: Array) -> Array:
        return np.where(takes, other, one)

    return Crossings(
        value=own.value,
        se=choose(own.se, pooled.se),
        df=choose(own.df, pooled.df),
        low=choose(own.low, pooled.low),
        high=choose(own.high, pooled.high),
        p=np.where(own.se > 0, np.maximum(own.p, pooled.p), own.p),
        method=np.where(takes, pooled.method, own.method),
        se_question=own.se_question,
        se_seed=choose(own.se_seed, pooled.se_seed),
        parts=(
            choose(own.parts[0], pooled.parts[0]),
            choose(own.parts[1], pooled.parts[1]),
            choose(own.parts[2], pooled.parts[2]),
        ),
    )


def mean_squares(tables: Array) -> tuple[Array, Array, Array]:
    """Those of questions, seeds and the rest, of each table of (..., questions, seeds)."""
    n, seeds = tables.shape[-2:]
    value = tables.mean(axis=(-2, -1), keepdims=True)
    rows, columns = tables.mean(axis=-1, keepdims=True), tables.mean(axis=-2, keepdims=True)
    question, seed, rest = (
        (part**2).sum(axis=(-2, -1)) for part in (rows - value, columns - value, tables - rows - columns + value)
    )
    free = max(1, n - 1), max(1, seeds - 1)
    return seeds * question / free[0], n * seed / free[1], rest / (free[0] * free[1])


def pooled_within(tables: Sequence[Array], of: str) -> Pool | None:
    """How seeds differ within several tables (..., questions, seeds). None with fewer than two of several seeds."""
    tables = [table for table in tables if table.shape[-1] > 1]
    if len(tables) < 2:
        return None
    free = [table.shape[-1] - 1.0 for table in tables]
    squares = [mean_squares(table) for table in tables]
    seed, rest = (np.average([one[i] for one in squares], axis=0, weights=free) for i in (1, 2))
    return Pool(seed, rest, sum(free), sum(free) * max(1, tables[0].shape[-2] - 1), of)


def pooled_between(tables: Array, of: str) -> Pool | None:
    """How seeds differ in what sets the cells of tables (..., cells, questions, seeds) apart.

    In a full factorial, these are the mean squares of all main effects and interactions together, for contrasts of
    which the squares of the weights add up to 1. None with fewer than three cells, which have but one contrast, or with
    one seed.
    """
    cells, n, seeds = tables.shape[-3:]
    if cells < 3 or seeds < 2:
        return None
    _, seed, rest = mean_squares(tables - tables.mean(axis=-3, keepdims=True))
    free = (cells - 1.0) * (seeds - 1)
    return Pool(seed.sum(axis=-1) / (cells - 1), rest.sum(axis=-1) / (cells - 1), free, free * max(1, n - 1), of)


def components(table: Array) -> Components:
    """As estimated from the mean squares. With one seed, all that is not the question's counts as its own."""
    n, seeds = table.shape
    if n < 2 or seeds < 2:
        return Components(float(table.var(ddof=1)) if n > 1 else 0.0, 0.0, 0.0)
    question, seed, rest = map(float, mean_squares(table))
    return Components(max(0.0, question - rest) / seeds, max(0.0, seed - rest) / n, rest)


def foreseen(parts: Components, n: int, seeds: int) -> float:
    """The standard error that the mean over n questions and so many seeds would have."""
    return math.sqrt(parts.question / n + parts.seed / seeds + parts.rest / (n * seeds))


def _satterthwaite(total: Array, question: Array, seeds: Pool, n: int) -> Array:
    """The degrees of freedom of a variance that is made of mean squares: at least those of the one with the fewest."""
    spread = question**2 / max(1, n - 1) + seeds.seed**2 / seeds.df_seed + seeds.rest**2 / max(1.0, seeds.df_rest)
    least = min(seeds.df_seed, max(1, n - 1))
    return np.maximum(least, total**2 / np.where(spread > 0, spread, math.inf))
