"""Variants and baselines: their complete runs, with the scores and accuracies of each iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from stasc.report.analysis.effects import BOUND, clipped
from stasc.report.records import Cell, Change, Interval, Run
from stasc.report.statistics import crossing, intervals
from stasc.report.statistics.crossing import Pool
from stasc.report.statistics.intervals import Array

TRANSITIONS = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")


@dataclass(frozen=True)
class Scores:
    """Accuracies of a run in %, (iterations, questions), and shares of the transitions, (iterations, 4).

    A run that stopped early because nothing was kept repeats its last iteration: its model no longer changes.
    """

    initial: Array
    correction: Array
    transitions: Array
    samples: int


def score(run: Run, questions: pd.Index, n: int) -> Scores:
    """Scores a run's answers in iterations 0 to n."""
    frame, size = run.outcomes[run.outcomes["n"] <= n], len(questions)
    correct_at = float(run.settings["correct_at"])
    r1, r2 = ((frame[name].to_numpy() >= correct_at).astype(float) for name in ("r1", "r2"))
    place = frame["n"].to_numpy() * size + questions.get_indexer(pd.Index(frame["question"]))

    def mean(weights: Array) -> Array:
        count = np.bincount(place, minlength=(n + 1) * size)
        found = 100 * np.bincount(place, weights, (n + 1) * size) / np.maximum(count, 1)
        last = int(frame["n"].max())
        return found.reshape(n + 1, size)[np.minimum(np.arange(n + 1), last)]

    shares = [mean(one).mean(axis=1) for one in (r1 * r2, r1 * (1 - r2), (1 - r1) * r2, (1 - r1) * (1 - r2))]
    samples = len(frame) // max(1, size * frame["n"].nunique())
    return Scores(mean(r1), mean(r2), np.stack(shares, axis=1), samples)


@dataclass(frozen=True)
class Row:
    """The complete runs of a variant or baseline in the order of their seeds, with their scores."""

    name: str
    levels: Mapping[str, str]
    kind: str
    runs: tuple[Run, ...]
    scores: tuple[Scores, ...]
    m_0: tuple[Scores, ...] = ()  # M_0's own scores, if `scores` are of votes
    untrained: bool = False  # the row is of M_0, whatever its runs trained later

    @property
    def trained(self) -> bool:
        return not self.untrained and any(entry["n"] for run in self.runs for entry in run.iterations)

    @property
    def trains(self) -> str | None:
        """The answers that training targets, `correction` or `initial`; None for M_0."""
        if self.untrained:
            return None
        target = str((self.runs[0].settings.get("target") or {}).get("_target_", ""))
        return "initial" if target.rpartition(".")[2] in ("Initial", "Gold") else "correction"

    def table(self, outcome: str, n: int) -> Array:
        """Returns an outcome in %, (questions, seeds). `over_...` compares the answers that training targets."""
        trained, tables = "initial" if self.trains == "initial" else "correction", []
        for one, m_0 in zip(self.scores, self.m_0 or self.scores, strict=True):
            found = {"initial": one.initial[n], "correction": one.correction[n]}
            found["gain"] = found["correction"] - found["initial"]
            found["over_initial"] = found[trained] - m_0.initial[0]
            found["over_correction"] = found[trained] - m_0.correction[0]
            tables.append(found[outcome])
        return np.stack(tables, axis=1)


def row(
    name: str, levels: Mapping[str, str], kind: str, runs: Sequence[Run], questions: pd.Index, n: int
) -> Row | None:
    """Returns the row of a variant or baseline, or None if no run is complete."""
    done = sorted((run for run in runs if run.complete), key=lambda run: run.seed)
    return Row(name, levels, kind, tuple(done), tuple(score(run, questions, n) for run in done)) if done else None


class Pools:
    """The variance between seeds within a variant or baseline, pooled over all trained rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._known: dict[tuple[str, int], Pool | None] = {}

    def within(self, row: Row, outcome: str, n: int) -> Pool | None:
        """Returns the pool for the row's outcome at iteration n.

        Returns: None if the row does not depend on training, or unless two rows have several seeds.
        """
        if not _differs(row, outcome, n):
            return None
        if (outcome, n) not in self._known:
            tables = [one.table(outcome, n) for one in self._rows if _differs(one, outcome, n)]
            self._known[outcome, n] = crossing.pooled_within(tables, "variants and baselines")
        return self._known[outcome, n]


def _differs(row: Row, outcome: str, n: int) -> bool:
    """Returns whether the outcome depends on training. With `init=fixed`, M_0 gives all initial answers."""
    same = outcome == "initial" and np.array_equal(row.table(outcome, n), row.table(outcome, 0))
    return n > 0 and row.trained and not same


def cell(row: Row, n: int, pools: Pools) -> Cell:
    """Summarises the row's runs at iteration n."""

    def found(outcome: str) -> Interval:
        return difference(row.table(outcome, n), pools.within(row, outcome, n))

    def reached(outcome: str) -> Interval:
        return accuracy(row.table(outcome, n), row.scores[0].samples, pools.within(row, outcome, n))

    transitions = np.mean([one.transitions[n] for one in row.scores], axis=0)
    spent = [_spent(run, n) for run in row.runs]
    return Cell(
        name=row.name,
        levels=row.levels,
        kind=row.kind,
        n=n,
        initial=reached("initial"),
        correction=reached("correction"),
        gain=found("gain"),
        over_initial=found("over_initial"),
        over_correction=found("over_correction") if n or row.m_0 else Interval(0.0, 0.0, 0.0, "M_0 itself"),
        transitions={name: float(share) for name, share in zip(TRANSITIONS, transitions, strict=True)},
        changes={run.seed: _change(one, n) for run, one in zip(row.runs, row.scores, strict=True) if one.samples == 1},
        questions=len(row.scores[0].initial[n]),
        seeds=tuple(run.seed for run in row.runs),
        samples=row.scores[0].samples,
        **{name: fmean(one[name] for one in spent) for name in spent[0]},
        trains=row.trains or "correction",
    )


def accuracy(table: Array, samples: int = 1, pool: Pool | None = None) -> Interval:
    """Returns a mean accuracy in %: by Wilson's method for one answer per question, else over questions and seeds."""
    n, seeds = table.shape
    if seeds == 1 and samples == 1:
        right = round(float(table.sum()) / BOUND)
        low, high = intervals.proportion(right, n)
        return Interval(BOUND * right / n, BOUND * low, BOUND * high, "Wilson: questions only, one training run")
    return clipped(difference(table, pool), lowest=0.0)


def difference(table: Array, pool: Pool | None = None) -> Interval:
    """Returns a mean difference in pp."""
    return clipped(crossing.crossed(table, BOUND, pool))


def _change(scores: Scores, n: int) -> Change:
    better = int((scores.correction[n] > scores.initial[n]).sum())
    worse = int((scores.correction[n] < scores.initial[n]).sum())
    found = intervals.mcnemar(better, worse, len(scores.initial[n]))
    interval = Interval(BOUND * found.difference, BOUND * found.low, BOUND * found.high, "paired by question, one run")
    return Change(better, worse, interval, found.p, found.can_reach)


def _spent(run: Run, n: int) -> dict[str, float]:
    """Returns the cost of a run up to iteration n, by the names of `Cell`'s fields."""
    done = [entry for entry in run.iterations if entry["n"] <= n]
    reused: dict[tuple[str, str], bool] = {}  # by its first event: a resumed run reuses the stages it computed itself
    for event in run.events:
        if event["event"] == "stage" and event.get("n", 0) <= n and event["kind"] != "model":  # part of fine-tuning
            reused.setdefault((event["kind"], event["key"]), bool(event["reused"]))
    found = {
        name: sum((entry[part] or {}).get(name, 0) for entry in done)
        for part, names in (("train", ("pairs", "kept")), ("finetune", ("steps", "tokens")))
        for name in names
    }
    seconds = sum(s for entry in done for name, s in entry["seconds"].items() if name not in ("total", "loading"))
    return {**found, "seconds": seconds, "reused": sum(reused.values())}
