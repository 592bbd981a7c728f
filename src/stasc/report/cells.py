"""The rows of the table: what each variant and baseline reaches at each iteration, over its seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from stasc.report import statistics
from stasc.report.effects import BOUND, within
from stasc.report.records import Cell, Change, Interval, Run
from stasc.report.scores import TRANSITIONS, Scores, score
from stasc.report.statistics import Array


@dataclass(frozen=True)
class Row:
    """A variant's, or a baseline's, complete runs in the order of their seeds, with their scores."""

    name: str
    levels: Mapping[str, str]
    kind: str
    runs: tuple[Run, ...]
    scores: tuple[Scores, ...]
    m_0: tuple[Scores, ...] = ()  # where M_0's own answers are not those at n = 0, as of a vote
    untrained: bool = False  # whatever came of the runs later

    def table(self, outcome: str, n: int) -> Array:
        """An outcome in %, (questions, seeds)."""
        before = dict(zip(map(id, self.scores), self.m_0 or self.scores, strict=True))
        tables = {
            "initial": lambda one: one.initial[n],
            "correction": lambda one: one.correction[n],
            "gain": lambda one: one.correction[n] - one.initial[n],
            "over_initial": lambda one: one.correction[n] - before[id(one)].initial[0],
            "over_correction": lambda one: one.correction[n] - before[id(one)].correction[0],
        }
        return np.stack([tables[outcome](one) for one in self.scores], axis=1)


def row(
    name: str, levels: Mapping[str, str], kind: str, runs: Sequence[Run], questions: pd.Index, n: int
) -> Row | None:
    """None if no run is complete."""
    done = sorted((run for run in runs if run.complete), key=lambda run: run.seed)
    return Row(name, levels, kind, tuple(done), tuple(score(run, questions, n) for run in done)) if done else None


def cell(row: Row, n: int) -> Cell:
    """What the row's runs reach at iteration n."""
    transitions = np.mean([one.transitions[n] for one in row.scores], axis=0)
    spent = [_spent(run, n) for run in row.runs]
    return Cell(
        name=row.name,
        levels=row.levels,
        kind=row.kind,
        n=n,
        initial=accuracy(row.table("initial", n), row.scores[0].samples),
        correction=accuracy(row.table("correction", n), row.scores[0].samples),
        gain=difference(row.table("gain", n)),
        over_initial=difference(row.table("over_initial", n)),
        over_correction=difference(row.table("over_correction", n))
        if n or row.m_0
        else Interval(0.0, 0.0, 0.0, "M_0 itself"),
        transitions={name: float(share) for name, share in zip(TRANSITIONS, transitions, strict=True)},
        changes={run.seed: _change(one, n) for run, one in zip(row.runs, row.scores, strict=True) if one.samples == 1},
        questions=len(row.scores[0].initial[n]),
        seeds=tuple(run.seed for run in row.runs),
        samples=row.scores[0].samples,
        pairs=fmean(one["pairs"] for one in spent),
        kept=fmean(one["kept"] for one in spent),
        steps=fmean(one["steps"] for one in spent),
        tokens=fmean(one["tokens"] for one in spent),
        seconds=fmean(one["seconds"] for one in spent),
        reused=fmean(one["reused"] for one in spent),
    )


def accuracy(table: Array, samples: int = 1) -> Interval:
    """A mean accuracy in %: by Wilson's rule for one answer to each question, else over questions and seeds."""
    n, seeds = table.shape
    if seeds == 1 and samples == 1:
        right = round(float(table.sum()) / BOUND)
        low, high = statistics.proportion(right, n)
        return Interval(BOUND * right / n, BOUND * low, BOUND * high, "Wilson: questions only, one training run")
    return within(difference(table), lowest=0.0)


def difference(table: Array) -> Interval:
    """A mean difference in pp."""
    found = statistics.crossed(table, BOUND)
    return within(Interval(found.value, found.low, found.high, found.method))


def _change(scores: Scores, n: int) -> Change:
    better = int((scores.correction[n] > scores.initial[n]).sum())
    worse = int((scores.correction[n] < scores.initial[n]).sum())
    found = statistics.mcnemar(better, worse, len(scores.initial[n]))
    interval = Interval(BOUND * found.difference, BOUND * found.low, BOUND * found.high, "paired by question, one run")
    return Change(better, worse, interval, found.p, found.can_reach)


def _spent(run: Run, n: int) -> dict[str, float]:
    """What a run has spent until iteration n."""
    done = [entry for entry in run.iterations if entry["n"] <= n]
    reused: dict[tuple[str, str], bool] = {}  # at first: one that was computed is reused once the run goes on
    for event in run.events:
        if event["event"] == "stage" and event.get("n", 0) <= n and event["kind"] != "model":  # of its fine-tuning
            reused.setdefault((event["kind"], event["key"]), bool(event["reused"]))
    return {
        "pairs": sum((entry["train"] or {}).get("pairs", 0) for entry in done),
        "kept": sum((entry["train"] or {}).get("kept", 0) for entry in done),
        "steps": sum((entry["finetune"] or {}).get("steps", 0) for entry in done),
        "tokens": sum((entry["finetune"] or {}).get("tokens", 0) for entry in done),
        "seconds": sum(s for entry in done for name, s in entry["seconds"].items() if name not in ("total", "loading")),
        "reused": sum(reused.values()),
    }
