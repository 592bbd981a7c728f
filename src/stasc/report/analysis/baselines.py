"""Baselines, and the ceilings that sampling M_0 repeatedly reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from stasc.report.analysis import cells, scores
from stasc.report.analysis.cells import Row
from stasc.report.records import Interval, Run


@dataclass
class Baselines:
    """Rows of baselines, `ceilings` (votes and pass@k of M_0's answers), and `notes` on how votes were taken."""

    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def baselines(runs: Sequence[Run], questions: pd.Index, n: int) -> Baselines:
    """Scores the baselines of a sweep up to iteration n."""
    found = Baselines()
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        if run.complete:
            by_name.setdefault(run.cell, []).append(run)
    votes = [name for name, done in by_name.items() if _votes(done[0])]
    for name, done in by_name.items():
        own = cells.row(name, {}, "baseline", done, questions, n)
        assert own
        if name not in votes:
            found.rows.append(own)
            continue
        voted = cells.row(name, {}, "baseline", [scores.voted(run) for run in done], questions, n)
        assert voted
        found.rows.append(replace(voted, m_0=own.scores))
        of = f"{name}: " if len(votes) > 1 else ""
        found.ceilings |= {f"{of}{ceiling}": value for ceiling, value in _ceilings(done, questions).items()}
        found.notes.append(
            f"{name} is the majority vote of {_either(done, 'vote_k')} initial answers of M_0, which have about as "
            "many tokens as an initial answer with its correction"
        )
    return found


def _votes(run: Run) -> bool:
    return run.settings["baseline"] == "self_consistency" and "vote_k" in run.iterations[0]["test"]


def _either(runs: Sequence[Run], what: str) -> str:
    """Returns a number of the runs' summaries, or `2 or 3` if seeds differ."""
    return " or ".join(map(str, sorted({int(run.iterations[0]["test"][what]) for run in runs})))


def _ceilings(runs: Sequence[Run], questions: pd.Index) -> dict[str, Interval]:
    """Returns the accuracy of a vote at the cost of a correction, of a vote of all answers, and pass@k."""
    samples = int(runs[0].iterations[0]["test"]["samples"])
    votes = [scores.score(scores.voted(run), questions, 0).correction[0] for run in runs]
    found = {f"vote@{_either(runs, 'vote_k')}": cells.accuracy(np.stack(votes, axis=1), samples)}
    found.setdefault(f"vote@{_either(runs, 'samples')}", _vote_of_all(runs, questions))
    passes = [scores.passes(run, questions) for run in runs]
    for k in sorted(set.intersection(*({*one} for one in passes))):
        found[f"pass@{k}"] = cells.accuracy(np.stack([one[k] for one in passes], axis=1), samples)
    return found


def _vote_of_all(runs: Sequence[Run], questions: pd.Index) -> Interval:
    """Returns the accuracy of the vote of all answers, with an interval if recounting the answers reproduces it."""
    votes = [scores.voted_by_all(run, questions) for run in runs]
    recorded = [100 * float(run.iterations[0]["test"]["vote_all_acc"]) for run in runs]
    if all(abs(float(vote.mean()) - accuracy) < 1e-6 for vote, accuracy in zip(votes, recorded, strict=True)):
        return cells.accuracy(np.stack(votes, axis=1))
    return Interval(float(np.mean(recorded)), None, None, "mean over seeds: recounting the answers gives another vote")
