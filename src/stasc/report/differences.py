"""Any two variants or baselines, question by question."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from stasc.report import design, statistics
from stasc.report.cells import Pools, Row, difference
from stasc.report.crossing import Pool
from stasc.report.effects import BOUND, within
from stasc.report.records import Difference, Interval
from stasc.report.statistics import Array

MOST = 24  # rows of which all pairs are told; of more, those that differ in one setting


def groups(questions: Iterable[str]) -> list[str] | None:
    """What questions are about, as far as their names tell: `countries/BD` of `countries/BD/capital`.

    None if that is the same for all of them, or another for each.
    """
    found = [name.rpartition("/")[0] for name in questions]
    return found if 1 < len({*found}) < len(found) else None


def differences(
    rows: Sequence[tuple[Row, int]], clusters: Sequence[str] | None, pools: Pools
) -> tuple[Difference, ...]:
    """Of rows, each at an iteration, all pairs that are measured alike and have a seed in common."""
    measures = [measure(row) for row, _ in rows]
    found = []
    for i, j in combinations(range(len(rows)), 2):
        one, other = rows[i][0], rows[j][0]
        seeds = tuple(run.seed for run in one.runs if run.seed in {run.seed for run in other.runs})
        if seeds and measures[i] == measures[j] and (len(rows) <= MOST or _neighbours(one.levels, other.levels)):
            found.append(_difference(rows[i], rows[j], seeds, clusters, pools))
    return tuple(found)


def measure(row: Row) -> dict[str, str]:
    """What decides which of a row's answers are right."""
    texts = design.texts(row.runs[0].settings)
    return {name: texts[name] for name in design.yardsticks(texts)}


def _difference(
    one: tuple[Row, int],
    other: tuple[Row, int],
    seeds: tuple[int, ...],
    clusters: Sequence[str] | None,
    pools: Pools,
) -> Difference:
    outcomes = _outcome(one[0], other[0]), _outcome(other[0], one[0])
    pair = [*zip((one, other), outcomes, strict=True)]
    first, second = (_of(row, row.table(outcome, n), seeds) for (row, n), outcome in pair)
    known = [pool for (row, n), outcome in pair if (pool := pools.within(row, outcome, n))]
    pool = functools.reduce(Pool.plus, known) if known else None
    means = first.mean(axis=1), second.mean(axis=1)
    clustered = None
    if clusters is not None:
        grouped = statistics.paired(*means, clusters, BOUND)
        clustered = within(Interval(grouped.value, grouped.low, grouped.high, grouped.method))
    rho = statistics.paired(*means, bound=BOUND).rho
    interval = difference(first - second, pool)
    return Difference(one[0].name, other[0].name, interval, clustered, rho, seeds, outcomes)


def _outcome(row: Row, other: Row) -> str:
    """What of a row is compared: the answers that it is trained to give, and of M_0, the same as of the other row."""
    return row.trains or other.trains or "correction"


def _of(row: Row, table: Array, seeds: tuple[int, ...]) -> Array:
    return table[:, np.array([run.seed in seeds for run in row.runs])]


def _neighbours(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return sum(one.get(name) != other.get(name) for name in {**one, **other}) == 1
