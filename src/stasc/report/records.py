"""Records of the report: runs as read from their folders, and the results computed from them.

Accuracies, rewards and their differences are in percentage points (pp) unless a field says otherwise.
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
    """A run, as read from its folder.

    `status` is that of summary.json, `unfinished` without a readable one, `damaged` if the files contradict it, or
    `missing` without a folder. `settings` are as composed, `iterations` as in summary.json. `pairs` reads pairs.jsonl
    on each call, because the pairs of all runs may exceed memory.
    """

    name: str
    folder: Path | None
    cell: str
    seed: int
    status: str
    error: str
    settings: Mapping[str, Any]
    iterations: Sequence[Mapping[str, Any]]
    outcomes: pd.DataFrame  # n, question (id), sample, y1, y2, r1, r2, vote, vote_all (rewards of majorities, or NaN)
    pairs: Callable[[], pd.DataFrame]  # n, question (id), i, seen, k, y1, y2, r1, r2, kept, dropped
    events: Sequence[Mapping[str, Any]]  # the journal's events
    overrides: Sequence[str] | None = None  # the job's command-line overrides; None if Hydra left none
    params: Mapping[str, str] = field(default_factory=dict)  # what its experiment sweeps by default
    choices: Mapping[str, str] = field(default_factory=dict)  # the options of its config groups

    @property
    def complete(self) -> bool:
        """Whether the run did everything it was asked for."""
        return self.status in ("finished", "stopped_empty")


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep.

    `settings` are the settings that vary, with their levels; `cells` are the expected combinations of levels, by name.
    `absent` lists requested levels that no run has; `notes` also lists other faults of the folder. `declared` are the
    seeds of the sweep's first command, None if unknown.
    """

    name: str
    folder: Path
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
    """An estimate with its 95 % interval and the method. `low` and `high` are None if the data allow no interval."""

    value: float
    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Effect:
    """The effect of a choice, or an interaction of choices, on an outcome at one iteration, in pp.

    `label` is short: `lenient instead of strict`, or `filter × start`. `raw` is the difference of differences of an
    interaction of two. `bootstrap` checks `interval`; `agree` says whether their widths differ by at most a fifth.
    `simultaneous` holds for all effects on the outcome jointly. `p` is a sign-flip test over questions, conditional on
    these training runs; `p_crossed` treats questions and seeds as random, as `interval` does. `se_clustered` is
    `se_question` clustered by groups of questions, None without groups. `needed` maps effects in pp to the number of
    questions that detect them with power 0.8, for these training runs.
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
    """The change from a run's initial answers to its corrections, one per question, with McNemar's exact test."""

    better: int
    worse: int
    difference: Interval
    p: float
    can_reach: bool  # whether p < .05 was possible with this number of changed answers


@dataclass(frozen=True)
class Difference:
    """The first minus the second of two variants or baselines, paired by question, in the answers that each trains.

    `outcomes` names these answers: `correction`, or `initial` for a baseline that trains initial answers. `rho` is the
    correlation over questions: pairing leaves about 1 - rho of the variance. `clustered` treats groups of questions as
    the samples, conditional on these training runs; None without groups.
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
    """A variant or baseline at one iteration, over its seeds.

    For a self-consistency baseline, the correction is the majority answer and the initial answer is the first vote.
    `over_initial` and `over_correction` are `reached` minus M_0's initial and correction accuracy.
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
    changes: Mapping[int, Change]  # by seed; empty if questions have several samples
    questions: int
    seeds: tuple[int, ...]
    samples: int
    pairs: float  # this and the fields up to `reused` are means over seeds, summed over iterations up to n
    kept: float
    steps: float
    tokens: float
    seconds: float  # compute time, cache hits included
    reused: float  # stages that were cache hits
    trains: str = "correction"  # or `initial`: the answers that training targets

    @property
    def reached(self) -> Interval:
        """The accuracy of the answers that training targets."""
        return self.initial if self.trains == "initial" else self.correction


@dataclass(frozen=True)
class Analysis:
    """All results of a report, as report.json holds them."""

    name: str
    declared: str  # the iteration and the tests that were chosen in advance
    n: int
    headline: str
    certainty: str  # how certain the largest effect is; empty with fewer than two choices
    power: str  # which effects the design detects; empty without choices
    effects: tuple[Effect, ...]
    trajectories: tuple[Effect, ...]  # main effects on correction at every n, exploratory
    comparisons: tuple[Effect, ...]  # pairs of levels or cells, outside a full factorial of two levels
    differences: tuple[Difference, ...]  # all pairs of variants and baselines that are scored alike
    cells: tuple[Cell, ...]  # at the last iteration, baselines last
    curves: Mapping[str, tuple[Cell, ...]]  # by variant and baseline, n = 0 first
    optimistic: Mapping[str, Interval]  # by variant: the best iteration on the test questions, of correction accuracy
    ceilings: Mapping[str, Interval]  # majority votes and pass@k of a self-consistency baseline
    noise_floor: Mapping[str, Interval]  # differences of M_0 under other sampling noise; by M_0 if there are several
    notes: tuple[str, ...]  # incomplete and missing runs, exclusions, caveats
    provenance: Mapping[str, Any]  # versions, hardware, commit, commands
