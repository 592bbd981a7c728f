"""What the report's modules hand to each other: runs as they were read, and what was computed from them.

Accuracies, rewards and their differences are in percentage points (pp) wherever a field's name says nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Run:
    """A run's folder.

    `status` is that of summary.json, `unfinished` where there is none to be read, `missing` where the sweep has no such
    folder. `settings` are as composed, `iterations` as in summary.json.
    """

    name: str
    folder: Path | None
    cell: str
    seed: int
    status: str
    error: str
    settings: Mapping[str, Any]
    iterations: Sequence[Mapping[str, Any]]
    outcomes: pd.DataFrame  # n, question, sample, y1, y2, r1, r2
    pairs: pd.DataFrame  # n, question, i, k, y1, y2, r1, r2, kept
    events: Sequence[Mapping[str, Any]]  # of the journal


@dataclass(frozen=True)
class Factor:
    """A design choice that the sweep varies, with its two levels: effects are `high` minus `low`."""

    name: str
    low: str
    high: str


@dataclass(frozen=True)
class Sweep:
    """All runs of a sweep. `cells` are the combinations of the factors' levels, by the variants' names."""

    name: str
    folder: Path
    factors: tuple[Factor, ...]
    cells: Mapping[str, Mapping[str, str]]
    runs: tuple[Run, ...]
    baselines: tuple[Run, ...]


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

    `raw` is the difference of differences of an interaction of two. `bootstrap` checks `interval`; `agree` says whether
    their widths differ by at most a fifth. `simultaneous` holds for all effects at once.
    """

    factors: tuple[str, ...]
    outcome: str  # correction, or gain (correction minus initial)
    interval: Interval
    raw: float | None
    se_question: float
    se_seed: float | None
    df: float
    bootstrap: Interval
    agree: bool
    simultaneous: Interval
    p: float
    p_adjusted: float
    family: str  # primary or secondary
    detectable: float  # with power 0.8
    questions: int
    seeds: int
    samples: int
    sentence: str


@dataclass(frozen=True)
class Cell:
    """A variant, or a baseline, at one iteration, over its seeds."""

    name: str
    levels: Mapping[str, str]
    kind: str  # variant or baseline
    n: int
    initial: Interval
    correction: Interval
    gain: Interval
    transitions: Mapping[str, float]  # right_right, right_wrong, wrong_right, wrong_wrong, in %
    mcnemar_p: Mapping[int, float]  # by seed
    questions: int
    seeds: tuple[int, ...]
    samples: int
    pairs: float  # the rest are means over seeds, of all iterations until n
    kept: float
    steps: float
    tokens: float
    seconds: float
    reused: float  # stages that came from the store


@dataclass(frozen=True)
class Analysis:
    """All that the page shows as numbers; report.json is this."""

    name: str
    declared: str  # which iteration counts, and that it was chosen beforehand
    n: int
    headline: str
    effects: tuple[Effect, ...]
    cells: tuple[Cell, ...]  # at the declared iteration, baselines last
    curves: Mapping[str, tuple[Cell, ...]]  # by variant, n = 0 first
    optimistic: Mapping[str, Interval]  # by variant: the best iteration on the test questions, of correction accuracy
    noise_floor: Interval | None  # the same M_0 under other noise
    notes: tuple[str, ...]  # failed, missing and unfinished cells, and what was left out for them
    provenance: Mapping[str, Any]  # versions, hardware, commit, commands
