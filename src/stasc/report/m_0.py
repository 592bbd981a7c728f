"""M_0 as a baseline: which variants begin with the same one, what it reaches untrained, and how far its noise goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stasc.report import design, statistics
from stasc.report.cells import Row
from stasc.report.design import Levels
from stasc.report.differences import measure
from stasc.report.records import Interval
from stasc.report.scores import Scores
from stasc.settings.table import stages_of

_OF_TRAINING = ("seed", "dataset.n_train", "dataset.train_path", "sampling.n_init", "sampling.n_corr")
_OF_TESTING = frozenset({"initial", "correction", "evaluation"})


@dataclass(frozen=True)
class Kind:
    """Variants that begin with the same M_0, tested alike. `name` is what sets it apart, empty if there is one only."""

    name: str
    rows: tuple[Row, ...]

    @property
    def fullest(self) -> Row:
        return max(self.rows, key=lambda row: len(row.runs))


def kinds(rows: Sequence[Row], settings: Mapping[str, Levels]) -> list[Kind]:
    """Variants by their M_0. Another one has other settings and gives other answers: either alone may mean nothing."""
    found: list[list[Row]] = []
    for row in rows:
        same = next((kind for kind in found if _is_of(row, kind)), None)
        if same is None:
            found.append([row])
        else:
            same.append(row)
    return [Kind(_name(kind, found, settings), tuple(kind)) for kind in found]


def zero_shot(found: Sequence[Kind]) -> list[Row]:
    """The baselines' rows: each M_0, from the variant of most seeds."""
    return [
        replace(kind.fullest, name=_named("zero-shot", kind), levels={}, kind="baseline", untrained=True)
        for kind in found
    ]


def noise_floor(found: Sequence[Kind]) -> dict[str, Interval]:
    """How far two seeds of the same M_0 are apart by sampling alone: the range of 95 % of their differences.

    From the variances over seeds of each question's corrections, so it rests on all questions.
    """
    floors = {}
    for kind in found:
        row = kind.fullest
        if len(row.runs) < 2:
            continue
        table = row.table("correction", 0)
        reach = statistics.quantile(np.inf) * float(np.sqrt(2 * table.var(axis=1, ddof=1).sum())) / len(table)
        floors[_named("M_0", kind)] = Interval(
            0.0,
            -reach,
            reach,
            f"M_0's correction accuracy, one seed minus another: 95 % of differences lie within; among these "
            f"{len(row.runs)} seeds, at most {np.ptp(table.mean(axis=0)):.1f} pp",
        )
    return floors


def _named(what: str, kind: Kind) -> str:
    return f"{what}, {kind.name}" if kind.name else what


def _is_of(row: Row, kind: Sequence[Row]) -> bool:
    return _signature(kind[0]) == _signature(row) or (measure(kind[0]) == measure(row) and _agree(kind, row))


def _signature(row: Row) -> dict[str, str]:
    """The settings that decide what M_0 answers to test questions, and which of its answers are right."""
    return {name: text for name, text in design.texts(row.runs[0].settings).items() if _tests(name)}


def _tests(setting: str) -> bool:
    if setting == "finetune._target_":  # one that holds M_0 in 4 bits makes it another model
        return True
    stages = stages_of(setting)
    return setting not in _OF_TRAINING and (not stages or bool(_OF_TESTING & stages))


def _agree(kind: Sequence[Row], row: Row) -> bool:
    """Whether M_0 gave the same answers with all seeds that both have."""
    known = {run.seed: one for other in kind for run, one in zip(other.runs, other.scores, strict=True)}
    both = [(known[run.seed], one) for run, one in zip(row.runs, row.scores, strict=True) if run.seed in known]
    return bool(both) and all(_same(one, other) for one, other in both)


def _same(one: Scores, other: Scores) -> bool:
    return np.array_equal(one.initial[0], other.initial[0]) and np.array_equal(one.correction[0], other.correction[0])


def _name(kind: Sequence[Row], found: Sequence[Sequence[Row]], settings: Mapping[str, Levels]) -> str:
    """`finetune=qlora`: the first setting that tells the kinds apart, or all in which they differ."""
    if len(found) == 1:
        return ""
    texts = {name: [_levels(rows, name) for rows in found] for name in settings}
    texts = {name: sets for name, sets in texts.items() if any(one != sets[0] for one in sets)}
    telling = [name for name, sets in texts.items() if len(frozenset().union(*sets)) == sum(map(len, sets))]
    at = next(i for i, rows in enumerate(found) if rows is kind)
    told = [f"{name}={' or '.join(sorted(texts[name][at]))}" for name in (telling[:1] or texts)]
    return ", ".join(told) or f"that of {kind[0].name}"


def _levels(rows: Sequence[Row], setting: str) -> frozenset[str]:
    return frozenset(row.levels[setting] for row in rows)
