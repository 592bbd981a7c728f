"""What a report says beside its numbers: which runs are not there, what was left out, and what to be careful of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stasc.report import design, wording
from stasc.report.design import Complete
from stasc.report.records import Cell, Effect, Run, Sweep
from stasc.report.statistics import MIN_CLUSTERS
from stasc.report.words import listed, number
from stasc.settings.table import deciding
from stasc.units import counted

_OF_BASELINES = ("init", "filter", "start", "target", "pairing", "seed")  # groups that make a baseline, or a variant
_NAMED = 4  # effects, at most
_HELD = {2: 90, 3: 94}  # %, by seeds: of 4000 made-up variants with 200 questions
_WIDER = 1.2  # standard errors of groups of questions, against those of questions


@dataclass(frozen=True)
class _State:
    """How notes call runs of a status."""

    status: str
    told: str


_STATES = (
    _State("failed", "failed"),
    _State("failed_nonfinite", "failed, as loss or gradient became infinite or NaN"),
    _State("interrupted", "was interrupted"),
    _State("unfinished", "is not finished"),
    _State("damaged", "has damaged files"),
)


def states(sweep: Sweep) -> list[str]:
    """What is wrong with runs, and those that stopped early as nothing was kept."""
    notes, empty, missing = [], dict[int | None, list[Run]](), list[Run]()
    for run in (*sweep.runs, *sweep.baselines):
        state = next((state.told for state in _STATES if state.status == run.status), run.status)
        last = max((entry["n"] for entry in run.iterations), default=None)
        if run.status == "stopped_empty":
            empty.setdefault(last, []).append(run)
        elif run.status == "missing":
            missing.append(run)
        elif not run.complete:
            until = "" if last is None else f", after iteration {last}"
            notes.append(f"{run.cell}, seed {run.seed}, {state}{until}" + (f" ({run.error})" if run.error else ""))
    for last, runs in sorted(empty.items(), key=lambda item: item[0] or 0):
        notes += [
            f"{names}, stopped after iteration {last}, as nothing was kept: later models are the same as M_{last}, and "
            "count with its outcomes"
            for names, _ in _together(runs)
        ]
    for names, count in _together(missing):
        be, s = ("is", "") if count == 1 else ("are", "s")
        notes.append(f"{names}, {be} missing: the sweep has no such run{s}")
    return notes


def _together(runs: Sequence[Run]) -> list[tuple[str, int]]:
    """The cells with their seeds, those of the same seeds together, and how many cells."""
    seeds: dict[str, tuple[int, ...]] = {}
    for run in runs:
        seeds[run.cell] = (*seeds.get(run.cell, ()), run.seed)
    cells: dict[tuple[int, ...], list[str]] = {}
    for cell, its in seeds.items():
        cells.setdefault(tuple(sorted(its)), []).append(cell)
    return [
        (f"{listed(several)}, seed{'s' if len(its) > 1 else ''} {listed([*map(str, its)])}", len(several))
        for its, several in cells.items()
    ]


def added(sweep: Sweep) -> list[str]:
    """Seeds that the sweep's first command did not declare."""
    if sweep.declared is None:
        return []
    late = sorted({run.seed for run in sweep.runs} - {*sweep.declared})
    if not late:
        return []
    seeds = "seed" if len(late) == 1 else "seeds"
    return [
        f"the sweep has more seeds than its first command declared, which was {counted(len(sweep.declared), 'seed')}: "
        f"{seeds} {listed([*map(str, late)])} came later. If the results until then had a say in that, intervals are "
        "too narrow and p-values too small; for sure ones, choose the number of seeds beforehand, with a sweep.name of "
        "its own"
    ]


def alone(cells: Sequence[Cell]) -> list[str]:
    """Warns of too few seeds where one variant alone was trained: no other can be pooled with it."""
    seeds = [len(cell.seeds) for cell in cells if cell.n]
    if len(seeds) != 1 or seeds[0] not in _HELD:
        return []
    return [
        f"{seeds[0]} seeds of one variant are too few to estimate how much training runs differ: where their standard "
        f"deviation is 7 pp, {_HELD[seeds[0]]} % of such intervals hold the truth, not 95 %"
    ]


def trained(cells: Sequence[Cell]) -> list[str]:
    """Variants and baselines that are trained to answer, where others are trained to correct."""
    names = [cell.name for cell in cells if cell.trains == "initial"]
    if not names or len(names) == len(cells):
        return []
    be, their = ("is", "its") if len(names) == 1 else ("are", "their")
    return [
        f"{listed(names)} {be} trained to give initial answers, not corrections: in differences from other variants, "
        f"from baselines and from M_0, {their} initial answers count"
    ]


def left_out(sweep: Sweep, full: Complete | None) -> list[str]:
    """What effects were computed from, and why not from the rest."""
    notes = []
    asked = sorted({int(run.settings["iterations"]) for run in sweep.runs if run.complete})
    if len(asked) > 1:
        notes.append(f"runs have {', '.join(map(str, asked))} iterations: all are compared at n = {asked[0]}")
    if not full or not sweep.settings:
        return notes
    for name, levels in sweep.settings.items():
        kept = full.settings[name]
        if len(kept) == 1:
            notes.append(
                f"effects are of runs with {name}={kept[0]} only, which leaves the most runs: a complete design "
                f"with {', '.join(level for level in levels if level not in kept)} too has fewer, or there is none"
            )
        elif len(kept) < len(levels):
            notes.append(f"effects leave out {name}={', '.join(level for level in levels if level not in kept)}")
        if len(kept) > 2:
            notes.append(
                f"{name} has {len(kept)} levels, so it has no effect of its own: its levels are compared pair by pair, "
                "and the effects of the others averaged over them"
            )
    seeds = sorted({run.seed for run in sweep.runs})
    if dropped := [seed for seed in seeds if seed not in full.seeds]:
        notes.append(
            f"effects are of seed{'s' if len(full.seeds) > 1 else ''} {listed([*map(str, full.seeds)])}, which all "
            f"{len(full.cells)} variants have; left out: {listed([*map(str, dropped)])}"
        )
    return notes


def unlike(sweep: Sweep) -> list[str]:
    """Settings of baselines that are not those of any variant, but for what makes them baselines."""
    variants = [deciding(run.settings) for run in sweep.runs if run.complete]
    notes = []
    for name in dict.fromkeys(run.cell for run in sweep.baselines):
        run = next((run for run in sweep.baselines if run.cell == name and run.complete), None)
        if run is None or not variants:
            continue
        others = {
            setting: value
            for setting, value in deciding(run.settings).items()
            if setting.partition(".")[0] not in _OF_BASELINES
            and setting != "evaluation.n_init"
            and value not in [variant.get(setting, value) for variant in variants]
        }
        if others:
            told = ", ".join(f"{setting}={value}" for setting, value in others.items())
            notes.append(f"{name} has settings that no variant has: {told}")
    return notes


def checked(effects: Sequence[Effect]) -> list[str]:
    """The effects whose interval the bootstrap does not confirm."""
    apart = [effect for effect in effects if not effect.agree]
    if not apart:
        return []
    labels = dict.fromkeys(f"{effect.label} ({wording.OUTCOMES[effect.outcome]})" for effect in apart)
    told = f": {'; '.join(labels)}" if len(labels) <= _NAMED else ""
    return [
        f"for {len(apart)} of {len(effects)} effects the bootstrap's interval is more than a fifth wider or narrower "
        f"than the one shown, mostly narrower as it knows no t quantile for few seeds{told}"
    ]


def measured(sweep: Sweep) -> list[str]:
    """Settings that vary and decide what counts as right."""
    return [
        f"{name} also decides which answers are right, so accuracies with {' and '.join(sweep.settings[name])} are of "
        "different measures: it has no effect here, and variants that differ in it are not ranked"
        for name in design.yardsticks(sweep.settings)
    ]


def grouped(groups: Sequence[str] | None, effects: Sequence[Effect]) -> list[str]:
    """What it changes if groups of questions, rather than questions, are samples."""
    if groups is None:
        return []
    count = len({*groups})
    told = f"questions come in {count} groups by what their names begin with, such as {groups[0]}"
    if count < MIN_CLUSTERS:
        return [f"{told}: too few to allow for, so intervals take questions for independent"]
    ratios = sorted(
        effect.se_clustered / effect.se_question
        for effect in effects
        if effect.family == "primary" and effect.se_clustered and effect.se_question
    )
    if not ratios:
        return []
    span = " to ".join(dict.fromkeys(number(ratio, digits=2) for ratio in (ratios[0], ratios[-1])))
    wide = ", so intervals are too narrow" if ratios[-1] > _WIDER else ""
    return [
        f"{told}: with these as samples, main effects' standard errors from questions are {span} times as large{wide}"
    ]
