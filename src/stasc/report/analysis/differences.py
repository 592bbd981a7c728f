"""Paired differences between any two variants or baselines."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from stasc.report import design
from stasc.report.analysis.cells import Pools, Row, difference
from stasc.report.analysis.effects import BOUND, clipped
from stasc.report.records import Difference
from stasc.report.statistics import intervals
from stasc.report.statistics.crossing import Pool

MOST = 24  # with more rows than this, only those that differ in a single setting are paired


def groups(questions: Iterable[str]) -> list[str] | None:
    """Returns the group of each question, from its name: `countries/BD` of `countries/BD/capital`.

    Returns: None if all questions share one group, or if each has its own.
    """
    found = [name.rpartition("/")[0] for name in questions]
    return found if 1 < len({*found}) < len(found) else None


def differences(
    rows: Sequence[tuple[Row, int]], clusters: Sequence[str] | None, pools: Pools
) -> tuple[Difference, ...]:
    """Compares rows, each at its iteration, in all pairs that are scored alike and have a seed in common."""
    measures = [measure(row) for row, _ in rows]
    found = []
    for i, j in combinations(range(len(rows)), 2):
        one, other = rows[i][0], rows[j][0]
        seeds = tuple(run.seed for run in one.runs if run.seed in {run.seed for run in other.runs})
        if seeds and measures[i] == measures[j] and (len(rows) <= MOST or _neighbours(one.levels, other.levels)):
            found.append(_difference(rows[i], rows[j], seeds, clusters, pools))
    return tuple(found)


def measure(row: Row) -> dict[str, str]:
    """Returns the settings that decide which of a row's answers are right."""
    texts = design.texts(row.runs[0].settings)
    return {name: texts[name] for name in design.scoring(texts)}


def _difference(
    one: tuple[Row, int], other: tuple[Row, int], seeds: tuple[int, ...], clusters: Sequence[str] | None, pools: Pools
) -> Difference:
    trains = one[0].trains, other[0].trains  # the answers that training targets; M_0's are those of the other row
    outcomes = trains[0] or trains[1] or "correction", trains[1] or trains[0] or "correction"
    pair = [*zip((one, other), outcomes, strict=True)]
    first, second = (row.table(outcome, n)[:, [run.seed in seeds for run in row.runs]] for (row, n), outcome in pair)
    known = [pool for (row, n), outcome in pair if (pool := pools.within(row, outcome, n))]
    pool = functools.reduce(Pool.plus, known) if known else None
    means = first.mean(axis=1), second.mean(axis=1)
    clustered = None if clusters is None else clipped(intervals.clustered(means[0] - means[1], clusters, BOUND))
    rho = intervals.correlation(*means)
    return Difference(one[0].name, other[0].name, difference(first - second, pool), clustered, rho, seeds, outcomes)


def _neighbours(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return sum(one.get(name) != other.get(name) for name in {**one, **other}) == 1
