"""Baselines: M_0 itself and its sampling noise, runs of other methods, and what sampling M_0 repeatedly reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from stasc.records import Answer, Pair, Question
from stasc.report import design
from stasc.report.analysis import cells
from stasc.report.analysis.cells import Row
from stasc.report.analysis.differences import measure
from stasc.report.design import Levels
from stasc.report.records import Interval, Run
from stasc.report.statistics import intervals
from stasc.report.statistics.intervals import Array, pass_at_k
from stasc.runs.vote import Key, majority
from stasc.settings.deciding import stages_of
from stasc.tasks import rewards

_OF_TRAINING = ("seed", "dataset.n_train", "dataset.train_path", "sampling.n_init", "sampling.n_corr")
_OF_TESTING = frozenset({"initial", "correction", "evaluation"})


@dataclass
class Baselines:
    """Rows of baselines, `ceilings` (votes and pass@k of M_0's answers), and `notes` on how votes were taken."""

    rows: list[Row] = field(default_factory=list)
    ceilings: dict[str, Interval] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def baselines(runs: Sequence[Run], questions: pd.Index, n: int) -> Baselines:
    """Scores the baselines of a sweep up to iteration n."""
    found = Baselines()
    names = dict.fromkeys(run.cell for run in runs if run.complete)
    by_name = {name: [run for run in runs if run.complete and run.cell == name] for name in names}
    votes = [
        name
        for name, (run, *_) in by_name.items()
        if run.settings["baseline"] == "self_consistency" and "vote_k" in run.iterations[0]["test"]
    ]
    for name, done in by_name.items():
        own = cells.row(name, {}, "baseline", done, questions, n)
        assert own
        if name not in votes:
            found.rows.append(own)
            continue
        voted = cells.row(name, {}, "baseline", [_voted(run) for run in done], questions, n)
        assert voted
        found.rows.append(replace(voted, m_0=own.scores))
        of = f"{name}: " if len(votes) > 1 else ""
        found.ceilings |= {f"{of}{ceiling}": value for ceiling, value in _ceilings(done, questions).items()}
        found.notes.append(
            f"{name} is the majority vote of {_either(done, 'vote_k')} initial answers of M_0, which have about as "
            "many tokens as an initial answer with its correction"
        )
    return found


def _either(runs: Sequence[Run], what: str) -> str:
    """Returns a number of the runs' summaries, or `2 or 3` if seeds differ."""
    return " or ".join(map(str, sorted({int(run.iterations[0]["test"][what]) for run in runs})))


def _ceilings(runs: Sequence[Run], questions: pd.Index) -> dict[str, Interval]:
    """Returns the accuracy of a vote at the cost of a correction, of a vote of all answers, and pass@k."""
    samples = int(runs[0].iterations[0]["test"]["samples"])
    votes = [cells.score(_voted(run), questions, 0).correction[0] for run in runs]
    found = {f"vote@{_either(runs, 'vote_k')}": cells.accuracy(np.stack(votes, axis=1), samples)}
    found.setdefault(f"vote@{_either(runs, 'samples')}", _vote_of_all(runs, questions))
    passes = [_passes(run, questions) for run in runs]
    for k in sorted(set.intersection(*({*one} for one in passes))):
        found[f"pass@{k}"] = cells.accuracy(np.stack([one[k] for one in passes], axis=1), samples)
    return found


def _vote_of_all(runs: Sequence[Run], questions: pd.Index) -> Interval:
    """Returns the accuracy of the vote of all answers, with an interval if recounting the answers reproduces it."""
    votes = [_voted_by_all(run, questions) for run in runs]
    recorded = [100 * float(run.iterations[0]["test"]["vote_all_acc"]) for run in runs]
    if all(abs(float(vote.mean()) - accuracy) < 1e-6 for vote, accuracy in zip(votes, recorded, strict=True)):
        return cells.accuracy(np.stack(votes, axis=1))
    return Interval(float(np.mean(recorded)), None, None, "mean over seeds: recounting the answers gives another vote")


def _voted(run: Run) -> Run:
    """Returns the run with each correction replaced by the majority vote of k answers from its initial answer on."""
    return replace(run, outcomes=run.outcomes.assign(r2=run.outcomes["vote"]))


def _voted_by_all(run: Run, questions: pd.Index) -> Array:
    """Returns the accuracy, in %, of the majority vote of all of M_0's initial answers, by question."""
    frame, correct_at = run.outcomes[run.outcomes["n"] == 0], float(run.settings["correct_at"])
    if frame["vote_all"].notna().all():  # recorded from schema 2 on
        firsts = frame.groupby("question", sort=False)["vote_all"].first()
        return 100 * (firsts.reindex(questions).to_numpy() >= correct_at).astype(float)
    key = _key(run.settings["reward"])
    right = np.zeros(len(questions))
    for name, answers in frame.groupby("question", sort=False):
        asked = Question(str(name), "", ())
        pairs = [
            Pair(asked, i, i, 0, Answer(text, 0), Answer("", 0), r1, 0.0)
            for i, (text, r1) in enumerate(zip(answers["y1"], answers["r1"], strict=True))
        ]
        right[questions.get_loc(name)] = majority(pairs, key).r1 >= correct_at
    return 100 * right


def _key(settings: Mapping[str, Any]) -> Key:
    """Returns what votes compare in an answer: the reward's key, or for a user's own reward, the normalised answer."""
    kind = getattr(rewards, str(settings["_target_"]).rpartition(".")[2], None)
    if isinstance(kind, type) and issubclass(kind, rewards.WordReward):
        with suppress(TypeError, KeyError, ValueError):  # settings of another version; `baselines` checks the vote
            return kind(settings["scope"], settings["marker"]).key
    return lambda text: tuple(rewards.normalise(text))


def _passes(run: Run, questions: pd.Index) -> dict[int, Array]:
    """Returns pass@k of M_0's initial answers in %, by k and question."""
    frame = run.outcomes[run.outcomes["n"] == 0]
    place = questions.get_indexer(pd.Index(frame["question"]))
    right = np.bincount(place, (frame["r1"] >= float(run.settings["correct_at"])).to_numpy(float), len(questions))
    n = int(np.bincount(place, minlength=len(questions)).min())
    ks = [k for k in (2**i for i in range(n.bit_length())) if k < n]
    return {k: 100 * pass_at_k(np.minimum(right, n), n, k) for k in [*ks, n]}


@dataclass(frozen=True)
class Kind:
    """Variants that share an M_0 and its evaluation. `name` tells it from other kinds; it is empty for a single one."""

    name: str
    rows: tuple[Row, ...]

    @property
    def fullest(self) -> Row:
        return max(self.rows, key=lambda row: len(row.runs))


def kinds(rows: Sequence[Row], settings: Mapping[str, Levels]) -> list[Kind]:
    """Groups variants by their M_0. Two M_0 are different only if both their settings and their answers differ."""
    found: list[list[Row]] = []
    for row in rows:
        same = next((kind for kind in found if _is_of(row, kind)), None)
        if same is None:
            found.append([row])
        else:
            same.append(row)
    return [Kind(_name(kind, found, settings), tuple(kind)) for kind in found]


def zero_shot(found: Sequence[Kind]) -> list[Row]:
    """Returns a baseline row for each M_0, from the variant with the most seeds."""
    return [
        replace(kind.fullest, name=_named("zero-shot", kind), levels={}, kind="baseline", untrained=True)
        for kind in found
    ]


def noise_floor(found: Sequence[Kind]) -> dict[str, Interval]:
    """Returns the 95 % range of differences between two seeds of the same M_0, which is sampling noise alone.

    The range rests on the variance over seeds of each question's corrections, and so on all questions.
    """
    floors = {}
    for kind in found:
        row = kind.fullest
        if len(row.runs) < 2:
            continue
        table = row.table("correction", 0)
        reach = intervals.quantile(np.inf) * float(np.sqrt(2 * table.var(axis=1, ddof=1).sum())) / len(table)
        floors[_named("M_0", kind)] = Interval(
            0.0,
            -reach,
            reach,
            f"95 % range of the difference in M_0's correction accuracy between two seeds; the largest difference "
            f"among these {len(row.runs)} seeds is {np.ptp(table.mean(axis=0)):.1f} pp",
        )
    return floors


def _named(what: str, kind: Kind) -> str:
    return f"{what}, {kind.name}" if kind.name else what


def _is_of(row: Row, kind: Sequence[Row]) -> bool:
    return _signature(kind[0]) == _signature(row) or (measure(kind[0]) == measure(row) and _agree(kind, row))


def _signature(row: Row) -> dict[str, str]:
    """Returns the settings that decide M_0's answers to test questions, and which of them are right."""
    return {name: text for name, text in design.texts(row.runs[0].settings).items() if _tests(name)}


def _tests(setting: str) -> bool:
    if setting == "finetune._target_":  # a method with M_0 in 4 bits changes M_0
        return True
    stages = stages_of(setting)
    return setting not in _OF_TRAINING and (not stages or bool(_OF_TESTING & stages))


def _agree(kind: Sequence[Row], row: Row) -> bool:
    """Returns whether M_0 gave the same answers with every seed that both have."""
    known = {run.seed: one for other in kind for run, one in zip(other.runs, other.scores, strict=True)}
    both = [(known[run.seed], one) for run, one in zip(row.runs, row.scores, strict=True) if run.seed in known]
    tables = [
        (getattr(one, name)[0], getattr(other, name)[0]) for one, other in both for name in ("initial", "correction")
    ]
    return bool(both) and all(np.array_equal(*pair) for pair in tables)


def _name(kind: Sequence[Row], found: Sequence[Sequence[Row]], settings: Mapping[str, Levels]) -> str:
    """Returns the first setting that tells the kinds apart, as `finetune=qlora`, or else all in which they differ."""
    if len(found) == 1:
        return ""
    texts = {name: [frozenset(row.levels[name] for row in rows) for rows in found] for name in settings}
    texts = {name: sets for name, sets in texts.items() if any(one != sets[0] for one in sets)}
    telling = [name for name, sets in texts.items() if len(frozenset().union(*sets)) == sum(map(len, sets))]
    at = next(i for i, rows in enumerate(found) if rows is kind)
    named = [f"{name}={' or '.join(sorted(texts[name][at]))}" for name in (telling[:1] or texts)]
    return ", ".join(named) or f"that of {kind[0].name}"
