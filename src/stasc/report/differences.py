"""Any two variants or baselines, question by question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from stasc.report import design, statistics
from stasc.report.cells import Row, difference
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


def differences(rows: Sequence[tuple[Row, int]], clusters: Sequence[str] | None) -> tuple[Difference, ...]:
    """Of rows, each at an iteration, all pairs that are measured alike and have a seed in common."""
    tables = [row.table("correction", n) for row, n in rows]
    measures = [measure(row) for row, _ in rows]
    found = []
    for i, j in combinations(range(len(rows)), 2):
        one, other = rows[i][0], rows[j][0]
        seeds = tuple(run.seed for run in one.runs if run.seed in {run.seed for run in other.runs})
        if seeds and measures[i] == measures[j] and (len(rows) <= MOST or _neighbours(one.levels, other.levels)):
            first, second = _of(one, tables[i], seeds), _of(other, tables[j], seeds)
            found.append(_difference(one.name, other.name, first, second, seeds, clusters))
    return tuple(found)


def measure(row: Row) -> dict[str, str]:
    """What decides which of a row's answers are right."""
    texts = design.texts(row.runs[0].settings)
    return {name: texts[name] for name in design.yardsticks(texts)}


def _difference(
    name: str, other: str, first: Array, second: Array, seeds: tuple[int, ...], clusters: Sequence[str] | None
) -> Difference:
    means = first.mean(axis=1), second.mean(axis=1)
    clustered = None
    if clusters is not None:
        one = statistics.paired(*means, clusters, BOUND)
        clustered = within(Interval(one.value, one.low, one.high, one.method))
    rho = statistics.paired(*means, bound=BOUND).rho
    return Difference(name, other, difference(first - second), clustered, rho, seeds)


def _of(row: Row, table: Array, seeds: tuple[int, ...]) -> Array:
    return table[:, np.array([run.seed in seeds for run in row.runs])]


def _neighbours(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return sum(one.get(name) != other.get(name) for name in {**one, **other}) == 1
