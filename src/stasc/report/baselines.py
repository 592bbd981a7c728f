"""The baselines' rows, and what sampling M_0 again and again holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from stasc.report import cells, scores
from stasc.report.cells import Row
from stasc.report.records import Interval, Run


@dataclass
class Baselines:
    """`ceilings` are of M_0's answers alone; `notes` say how votes were taken."""

    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def baselines(runs: Sequence[Run], questions: pd.Index, n: int) -> Baselines:
    """What the baselines of a sweep reach by iteration n."""
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
            f"{name} is the majority of {_either(done, 'vote_k')} initial answers of M_0, which have about as many "
            "tokens as an initial answer and its correction"
        )
    return found


def _votes(run: Run) -> bool:
    return run.settings["baseline"] == "self_consistency" and "vote_k" in run.iterations[0]["test"]


def _either(runs: Sequence[Run], what: str) -> str:
    """`2 or 3`, where seeds differ."""
    return " or ".join(map(str, sorted({int(run.iterations[0]["test"][what]) for run in runs})))


def _ceilings(runs: Sequence[Run], questions: pd.Index) -> dict[str, Interval]:
    """The vote of as many answers as a correction costs, that of all, and pass@k."""
    samples = int(runs[0].iterations[0]["test"]["samples"])
    votes = [scores.score(scores.voted(run), questions, 0).correction[0] for run in runs]
    found = {f"vote@{_either(runs, 'vote_k')}": cells.accuracy(np.stack(votes, axis=1), samples)}
    found.setdefault(f"vote@{_either(runs, 'samples')}", _vote_of_all(runs, questions))
    passes = [scores.passes(run, questions) for run in runs]
    for k in sorted(set.intersection(*({*one} for one in passes))):
        found[f"pass@{k}"] = cells.accuracy(np.stack([one[k] for one in passes], axis=1), samples)
    return found


def _vote_of_all(runs: Sequence[Run], questions: pd.Index) -> Interval:
    """Counted anew from the answers, which alone tell which questions it gets right."""
    votes = [scores.voted_by_all(run, questions) for run in runs]
    told = [100 * float(run.iterations[0]["test"]["vote_all_acc"]) for run in runs]
    if all(abs(float(vote.mean()) - accuracy) < 1e-6 for vote, accuracy in zip(votes, told, strict=True)):
        return cells.accuracy(np.stack(votes, axis=1))
    return Interval(float(np.mean(told)), None, None, "the mean over seeds: the answers do not give the vote again")
