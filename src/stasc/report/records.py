"""What the report's modules hand to each other: runs as they were read, and what was computed from them.

Accuracies, rewards and their differences are in percentage points (pp) wherever a field's name says nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc.records import Question

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A run's folder.

    `status` is that of summary.json, `unfinished` where there is none to be read, `damaged` where what it tells of is
    not there, `missing` where the sweep has no such folder. `settings` are as composed, `iterations` as in
    summary.json. `pairs` reads pairs.jsonl anew, as the pairs of all runs may be more than memory holds.
    """

    name: str
    folder: Path | None
    cell: str
    seed: int
    status: str
    error: str
    settings: Mapping[str, Any]
    iterations: Sequence[Mapping[str, Any]]
    outcomes: pd.DataFrame  # n, question (its id), sample, y1, y2, r1, r2, vote, vote_all (of majorities, or NaN)
    pairs: Callable[[], pd.DataFrame]  # n, question (its id), i, seen, k, y1, y2, r1, r2, kept, dropped
    events: Sequence[Mapping[str, Any]]  # of the journal
    overrides: Sequence[str] | None = None  # of this job; None if Hydra did not leave them
    params: Mapping[str, str] = field(default_factory=dict)  # what its experiment sweeps, unless told otherwise

    @property
    def complete(self) -> bool:
        """Whether it did all that it was to do."""
        return self.status in ("finished", "stopped_empty")


@dataclass(frozen=True)
class Factor:
    """A design choice that the sweep varies, with its two levels: effects are `high` minus `low`."""

    name: str
    low: str
    high: str


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep.

    `cells` are the combinations of levels that there are or should be, by name; `settings` are all settings that vary,
    with their levels, and `factors` those with two. `absent` says which levels were asked for that no run has, `notes`
    also what else was wrong with the folder. `declared` are the seeds of the sweep's first command, None if unknown.
    """

    name: str
    folder: Path
    factors: tuple[Factor, ...]
    settings: Mapping[str, tuple[str, ...]]
    cells: Mapping[str, Mapping[str, str]]
    runs: tuple[Run, ...]
    baselines: tuple[Run, ...]
    notes: tuple[str, ...] = ()
    questions: Mapping[str, Question] = field(default_factory=dict)  # by id
    absent: tuple[str, ...] = ()
    declared: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, and how that was computed. The bounds are None where none can be given."""

    value: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Effect:
    """What a choice, or an interaction of choices, does to an outcome at the declared iteration, in pp.

    `label` is short: `lenient instead of strict`, or `filter × start`. `raw` is the difference of differences of an
    interaction of two. `bootstrap` checks `interval`; `agree` says whether their widths differ by at most a fifth.
    `simultaneous` holds for all effects on the outcome at once. `p` is of sign flips over questions, and so
    conditional on these training runs; `p_crossed` counts seeds as well, as `interval` does. `se_clustered` is
    `se_question` with groups of questions taken as samples, None where they have no groups. `needed` says how many
    questions tell so many pp from 0, with power 0.8, as far as questions go.
    """

    factors: tuple[str, ...]
    label: str
    outcome: str  # correction, or gain (correction minus initial)
    n: int
    interval: Interval
    raw: float | None
    se_question: float
    se_seed: float | None
    se_clustered: float | None
    df: float
    bootstrap: Interval
    agree: bool
    simultaneous: Interval
    p: float
    p_adjusted: float
    p_crossed: float
    p_crossed_adjusted: float
    family: str  # primary: choices; secondary: interactions; exploratory: comparisons
    detectable: float  # with power 0.8
    needed: Mapping[str, int]
    questions: int
    seeds: int
    samples: int
    sentence: str


@dataclass(frozen=True)
class Change:
    """What corrections make of a run's initial answers, one to each question: McNemar's exact test."""

    better: int
    worse: int
    difference: Interval
    p: float
    can_reach: bool  # whether p < .05 was possible with so few answers that change


@dataclass(frozen=True)
class Difference:
    """The first minus the second of two variants or baselines, by question, in what each is trained to give.

    `outcomes` says which answers these are: `correction`, or `initial` of a baseline that trains initial answers.
    `rho` is how alike they are question by question: pairing leaves 1 - rho of the variance. `clustered` takes groups
    of questions as samples, and so is conditional on these training runs; None where questions have no groups.
    """

    first: str
    second: str
    interval: Interval
    clustered: Interval | None
    rho: float | None
    seeds: tuple[int, ...]  # that both have
    outcomes: tuple[str, str] = ("correction", "correction")


@dataclass(frozen=True)
class Cell:
    """A variant, or a baseline, at one iteration, over its seeds.

    A self-consistency baseline's correction is the majority's answer, its initial answer the first of those that vote.
    `over_initial` and `over_correction` are what is `reached` minus M_0's initial and correction accuracy.
    """

    name: str
    levels: Mapping[str, str]
    kind: str  # variant or baseline
    n: int
    initial: Interval
    correction: Interval
    gain: Interval
    over_initial: Interval
    over_correction: Interval
    transitions: Mapping[str, float]  # right_right, right_wrong, wrong_right, wrong_wrong, in %
    changes: Mapping[int, Change]  # by seed; none where questions have several samples
    questions: int
    seeds: tuple[int, ...]
    samples: int
    pairs: float  # the rest are means over seeds, of all iterations until n
    kept: float
    steps: float
    tokens: float
    seconds: float  # of computing, as if nothing had been reused
    reused: float  # stages that came from the store
    trains: str = "correction"  # or `initial`: the answers that it is trained to give

    @property
    def reached(self) -> Interval:
        """The accuracy of the answers that it is trained to give."""
        return self.initial if self.trains == "initial" else self.correction


@dataclass(frozen=True)
class Analysis:
    """All that the page shows as numbers; report.json is this."""

    name: str
    declared: str  # which iteration counts, and that it was chosen beforehand
    n: int
    headline: str
    certainty: str  # how sure it is which choice matters most; empty with fewer than two choices
    power: str  # what the design could have detected, and what would help; empty without choices
    effects: tuple[Effect, ...]
    trajectories: tuple[Effect, ...]  # choices' effects on correction at every n, exploratory
    comparisons: tuple[Effect, ...]  # pairs of levels or of cells, where the design is no full factorial of two levels
    differences: tuple[Difference, ...]  # any two variants and baselines that are measured alike
    cells: tuple[Cell, ...]  # at the declared iteration, baselines last
    curves: Mapping[str, tuple[Cell, ...]]  # by variant and baseline, n = 0 first
    optimistic: Mapping[str, Interval]  # by variant: the best iteration on the test questions, of correction accuracy
    ceilings: Mapping[str, Interval]  # of a self-consistency baseline: majority vote and pass@k, by name
    noise_floor: Mapping[str, Interval]  # the same M_0 under other noise; by M_0, where variants have several
    notes: tuple[str, ...]  # failed, missing and unfinished cells, and what was left out for them
    provenance: Mapping[str, Any]  # versions, hardware, commit, commands
