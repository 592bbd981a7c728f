"""The report's notes: runs that are missing or incomplete, data that were excluded, and caveats."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stasc.report import design
from stasc.report.design import Complete
from stasc.report.records import Cell, Effect, Run, Sweep
from stasc.report.statistics.intervals import MIN_CLUSTERS
from stasc.report.wording import OUTCOMES, listed, number
from stasc.settings.deciding import deciding
from stasc.units import counted

_OF_BASELINES = ("init", "filter", "start", "target", "pairing", "seed")  # groups that define a baseline or a variant
_NAMED = 4  # effects in a note, at most
_COVERAGE = {2: 90, 3: 94}  # % of 4000 simulated variants with 200 questions, by seeds
_WIDER = 1.2  # ratio of clustered to plain standard errors from which intervals are called too narrow
_STATES = {
    "failed_nonfinite": "failed because the loss or gradient became infinite or NaN",
    "damaged": "excluded because its files are damaged",
}


def states(sweep: Sweep) -> list[str]:
    """Names runs that are incomplete or missing, and runs that stopped early."""
    notes, empty, missing = [], dict[int | None, list[Run]](), list[Run]()
    for run in (*sweep.runs, *sweep.baselines):
        last = max((entry["n"] for entry in run.iterations), default=None)
        if run.status == "stopped_empty":
            empty.setdefault(last, []).append(run)
        elif run.status == "missing":
            missing.append(run)
        elif not run.complete:
            until = "" if last is None else f", last finished iteration {last}"
            error = f" ({run.error})" if run.error else ""
            notes.append(f"{run.cell}, seed {run.seed}: {_STATES.get(run.status, run.status)}{until}{error}")
    for last, runs in sorted(empty.items(), key=lambda item: item[0] or 0):
        why = f"because nothing was kept; later models equal M_{last} and count with its outcomes"
        notes += [f"{names}: stopped after iteration {last} {why}" for names in _together(runs)]
    return [*notes, *(f"{names}: missing from the sweep" for names in _together(missing))]


def _together(runs: Sequence[Run]) -> list[str]:
    """Returns `EIE and ENE, seeds 0 and 1`, for each group of cells with the same seeds."""
    cells = dict.fromkeys(run.cell for run in runs)
    seeds = {cell: tuple(sorted(run.seed for run in runs if run.cell == cell)) for cell in cells}
    groups = {its: [cell for cell in cells if seeds[cell] == its] for its in seeds.values()}
    return [f"{listed(several)}, {_seeds(its)}" for its, several in groups.items()]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {listed([*map(str, seeds)])}"


def added(sweep: Sweep) -> Iterator[str]:
    """Names seeds that the first command of the sweep did not declare."""
    if sweep.declared is not None and (late := sorted({run.seed for run in sweep.runs} - {*sweep.declared})):
        yield (
            f"the first command of this sweep declared {counted(len(sweep.declared), 'seed')}; {_seeds(late)} came "
            "later. If interim results led to that, intervals are too narrow and p-values too small; for valid ones, "
            "fix the number of seeds in advance, under a new sweep.name"
        )


def alone(cells: Sequence[Cell]) -> Iterator[str]:
    """Warns of too few seeds if a single variant was trained, so that no other can be pooled with it."""
    seeds = [len(cell.seeds) for cell in cells if cell.n]
    if len(seeds) == 1 and seeds[0] in _COVERAGE:
        yield (
            f"{seeds[0]} seeds of one variant are too few to estimate how much training runs differ: if their standard "
            f"deviation is 7 pp, 95 % intervals contain the true value {_COVERAGE[seeds[0]]} % of the time"
        )


def trained(cells: Sequence[Cell]) -> Iterator[str]:
    """Names variants and baselines that train initial answers, if others train corrections."""
    names = [cell.name for cell in cells if cell.trains == "initial"]
    if 0 < len(names) < len(cells):
        be, their = ("is", "its") if len(names) == 1 else ("are", "their")
        what = f"trained to give initial answers, not corrections, so comparisons use {their} initial accuracy"
        yield f"{listed(names)} {be} {what}"


def left_out(sweep: Sweep, full: Complete | None) -> Iterator[str]:
    """Says which runs the effects use, and why others are excluded."""
    asked = sorted({int(run.settings["iterations"]) for run in sweep.runs if run.complete})
    if len(asked) > 1:
        yield f"runs have {listed([*map(str, asked)])} iterations; all are compared at n = {asked[0]}"
    if not full or not sweep.settings:
        return
    for name, levels in sweep.settings.items():
        kept, others = full.settings[name], [level for level in levels if level not in full.settings[name]]
        if len(kept) == 1:
            why = f"the largest complete design; including {listed(others)} leaves fewer runs or none"
            yield f"effects use runs with {name}={kept[0]} only, {why}"
        elif others:
            yield f"effects exclude {name}={', '.join(others)}"
        if len(kept) > 2:
            how = "which are compared pairwise; effects of other settings are averaged over them"
            yield f"{name} has {len(kept)} levels, {how}"
    if dropped := sorted({run.seed for run in sweep.runs} - {*full.seeds}):
        excluded = listed([*map(str, dropped)])
        yield f"effects use {_seeds(full.seeds)}, which all {len(full.cells)} variants have; excluded: {excluded}"


def unlike(sweep: Sweep) -> Iterator[str]:
    """Names settings of baselines that no variant has, other than those that define the baseline."""
    variants = [deciding(run.settings) for run in sweep.runs if run.complete]
    first = {run.cell: run for run in reversed(sweep.baselines) if run.complete and variants}
    for name in dict.fromkeys(run.cell for run in sweep.baselines if run.cell in first):
        others = [
            f"{setting}={value}"
            for setting, value in deciding(first[name].settings).items()
            if setting.partition(".")[0] not in _OF_BASELINES
            and setting != "evaluation.n_init"
            and value not in [variant.get(setting, value) for variant in variants]
        ]
        if others:
            yield f"{name} has settings that no variant has: {', '.join(others)}"


def checked(effects: Sequence[Effect]) -> Iterator[str]:
    """Counts the effects whose interval the bootstrap does not confirm, and names a few."""
    if apart := [effect for effect in effects if not effect.agree]:
        labels = dict.fromkeys(f"{effect.label} ({OUTCOMES[effect.outcome]})" for effect in apart)
        names = f": {'; '.join(labels)}" if len(labels) <= _NAMED else ""
        yield (
            f"for {len(apart)} of {len(effects)} effects, the width of the bootstrap interval differs by more than a "
            "fifth from the one shown; with few seeds it is mostly narrower, as it has no t quantile" + names
        )


def measured(sweep: Sweep) -> list[str]:
    """Names varied settings that decide what counts as right."""
    return [
        f"{name} decides which answers count as right, so accuracies with {listed(sweep.settings[name])} are different "
        "measures: its effect is not estimated, and variants that differ in it are not ranked"
        for name in design.scoring(sweep.settings)
    ]


def grouped(groups: Sequence[str] | None, effects: Sequence[Effect]) -> Iterator[str]:
    """Says how clustering by groups of questions changes the standard errors."""
    if groups is None:
        return
    count, main = len({*groups}), [effect for effect in effects if effect.family == "primary"]
    text = f"questions come in {count} groups that share the start of their name, such as {groups[0]}"
    ratios = sorted(one.se_clustered / one.se_question for one in main if one.se_clustered and one.se_question)
    if count < MIN_CLUSTERS:
        yield f"{text}: too few to cluster by, so intervals treat questions as independent"
    elif ratios:
        span = " to ".join(dict.fromkeys(number(ratio, digits=2) for ratio in (ratios[0], ratios[-1])))
        part = f"the question part of the main effects' standard errors is {span} times as large"
        narrow = ", so intervals are too narrow" if ratios[-1] > _WIDER else ""
        yield f"{text}; clustered by group, {part}{narrow}"
