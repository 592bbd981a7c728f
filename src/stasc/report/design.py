"""Finds the design of a sweep: which settings vary, at which levels, and which runs form a complete design."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stasc.report.records import Run
from stasc.settings.deciding import deciding
from stasc.settings.names import NAMING, chosen_options, variant_part

Levels = tuple[str, ...]

REPLICATES = ("seed", "iterations")  # number and length of runs, which are not compared
ORDER = {
    "init": ("fixed", "evolving"),
    "filter": ("strict", "maintaining", "lenient"),
    "start": ("fixed", "evolving"),
    "finetune": ("full", "lora", "qlora"),
}
SCORING = ("reward", "correct_at", "reward_errors")  # settings that decide what counts as right
_NONE = "-"  # the level of a setting that a run does not have
_MOST_SUBSETS = 4096  # subsets of levels tried for a complete design


@dataclass(frozen=True)
class Design:
    """The settings that vary, and the levels of each run in the same order.

    `notes` name settings that vary together with one of these, and so are confounded with it.
    """

    settings: Mapping[str, Levels]
    of_run: Sequence[Levels]
    notes: tuple[str, ...] = ()


def find(
    settings: Sequence[Mapping[str, Any]], choices: Sequence[Mapping[str, str]], given: Iterable[str] = ()
) -> Design:
    """Finds the settings that vary among runs.

    A config group with several options is one setting; a setting inside it varies only if runs of the same option
    differ in it. A setting that follows from another one does not vary, unless it was `given` by name.

    Args:
        settings: of each run, as composed.
        choices: of each run, the options of its config groups.
    """
    flat = [texts(one) for one in settings]
    options = [chosen_options(one, chosen) for one, chosen in zip(settings, choices, strict=True)]
    groups = [name for name in dict.fromkeys(itertools.chain(*options)) if len({one.get(name) for one in options}) > 1]
    varying = {name: [one.get(name, _NONE) for one in options] for name in groups}
    alone = {}
    for name in dict.fromkeys(itertools.chain(*flat)):
        values, group = [one.get(name, _NONE) for one in flat], varying.get(name.partition(".")[0])
        if name not in REPLICATES and not name.endswith("._target_") and _splits(values, group):
            alone[name] = values
    given, notes = {*given}, []
    for name, values in alone.items():
        others = {**varying, **{other: alone[other] for other in alone if other in given}}
        group = varying.get(name.partition(".")[0])
        followed = [other for other in others if _follows(values, others[other], group)]
        if name in given or not followed:
            varying[name] = values
            continue
        for other in followed:
            leaves = [leaf for leaf in flat[0] if leaf.startswith(f"{other}.")]
            same = [others[other], *([one.get(leaf, _NONE) for one in flat] for leaf in leaves)]
            if values not in same:  # other than by interpolation
                both = zip(others[other], group, strict=True) if group else ()
                within = [f"{level} and {option}" for level, option in both] or others[other]
                notes.append(f"{other} also changes {name}: {_by_level(values, within)}")
    names = sorted(varying, key=lambda name: [*ORDER, name].index(name))
    levels = {name: tuple(sorted({*varying[name]}, key=lambda level: _rank(name, level))) for name in names}
    of_run = [tuple(varying[name][i] for name in names) for i in range(len(settings))]
    return Design(levels, of_run, tuple(notes))


def _by_level(values: Sequence[str], other: Sequence[str]) -> str:
    """Returns `1e-05 with lenient, 2e-05 with strict`."""
    found = {(level, value) for value, level in zip(values, other, strict=True) if value != _NONE}
    return ", ".join(f"{value} with {level}" for level, value in sorted(found))


def scoring(settings: Iterable[str]) -> list[str]:
    """Returns the settings that decide what counts as right, so that accuracies at two levels are not comparable."""
    return [name for name in settings if name.partition(".")[0] in SCORING]


def texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the settings that decide results, with their values as typed on the command line."""
    return {name: _text(value) for name, value in deciding(settings).items()}


def _splits(values: Sequence[str], group: Sequence[str] | None) -> bool:
    """Returns whether runs that have a setting differ in it; within a group that varies, runs of the same option."""
    of_option: dict[str, set[str]] = {}
    for value, option in zip(values, group or [""] * len(values), strict=True):
        of_option.setdefault(option, set()).add(value)
    return any(len(found - {_NONE}) > 1 for found in of_option.values())


def _follows(values: Sequence[str], other: Sequence[str], group: Sequence[str] | None) -> bool:
    """Returns whether the level of the other setting, with the group's option if that varies, determines the value."""
    levels = [*zip(other, group or other, strict=True)]
    pairs = {(level, value) for value, level in zip(values, levels, strict=True) if value != _NONE}
    return len(pairs) == len({level for level, _ in pairs})


def _text(value: object) -> str:
    """Returns a setting's value as typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def level(text: str) -> str:
    """Returns a level from the command line in the spelling of `texts`."""
    try:
        return _text(float(text)) if text.strip("+-").lower() not in ("nan", "inf", "infinity") else text
    except ValueError:
        return text.strip("'\"")


def _rank(setting: str, text: str) -> tuple[int, float, str]:
    """Returns the sort key of a level: known options in `ORDER`, then numbers by size, then names."""
    if text in ORDER.get(setting, ()):
        return 0, ORDER[setting].index(text), ""
    try:
        return 1, float(text), ""
    except ValueError:
        return 2, 0, text


def names(design: Design, settings: Sequence[Mapping[str, Any]]) -> dict[Levels, str]:
    """Names every combination of levels by its variant, and by other settings if variants are ambiguous.

    Combinations without a run get the variant's name if other runs show the parts of all its choices.
    """
    parts: dict[tuple[str, str], str] = {}
    for one, levels in zip(settings, design.of_run, strict=True):
        text = dict(zip(design.settings, levels, strict=True))
        parts |= {(group, text.get(group, "")): variant_part(one, group) for group in NAMING}
    variants = {levels: str(one["variant"]) for one, levels in zip(settings, design.of_run, strict=True)}
    for levels in itertools.product(*design.settings.values()):
        text = dict(zip(design.settings, levels, strict=True))
        variants.setdefault(levels, "".join(parts.get((group, text.get(group, "")), "?") for group in NAMING))
    if len({*variants.values()}) == len(variants):
        return variants
    rest = [name for name in design.settings if name not in NAMING]
    longer = {levels: ", ".join([variant, *_named(design, levels, rest)]) for levels, variant in variants.items()}
    if len({*longer.values()}) == len(longer):
        return longer
    return {levels: ", ".join(_named(design, levels, [*design.settings])) for levels in variants}


def _named(design: Design, levels: Levels, settings: Sequence[str]) -> list[str]:
    """Returns texts such as `learning_rate=1e-05`, with the last part of a setting's name if that is unambiguous."""
    last = {name: name.rpartition(".")[2] for name in settings}
    count = Counter(last.values())
    text = dict(zip(design.settings, levels, strict=True))
    return [f"{last[name] if count[last[name]] == 1 else name}={text[name]}" for name in settings]


@dataclass(frozen=True)
class Complete:
    """A full factorial design in which every run is complete.

    `cells` maps cells to their levels, in the order of all combinations; `runs` are by cell and seed.
    """

    settings: Mapping[str, Levels]
    cells: Mapping[str, Levels]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, int], Run]


def complete(
    settings: Mapping[str, Levels], cells: Mapping[str, Mapping[str, str]], runs: Sequence[Run]
) -> Complete | None:
    """Returns the full factorial with the most complete runs, or None if no run is complete.

    Ties go to the design in which more settings vary. A seed counts if all cells have it.
    """
    present: dict[Levels, tuple[str, dict[int, Run]]] = {}
    for run in runs:
        if run.complete:
            levels = tuple(cells[run.cell][name] for name in settings)
            present.setdefault(levels, (run.cell, {}))[1].setdefault(run.seed, run)
    best: tuple[tuple[int, int, int], Complete] | None = None
    for chosen in _subsets(settings):
        grid = [*itertools.product(*chosen)]
        if not all(levels in present for levels in grid):
            continue
        seeds = sorted(set.intersection(*({*present[levels][1]} for levels in grid)))
        varying = sum(len(levels) > 1 for levels in chosen)
        score = len(grid) * len(seeds), varying, len(seeds)
        if seeds and (best is None or score > best[0]):
            found = {(present[levels][0], seed): present[levels][1][seed] for levels in grid for seed in seeds}
            kept = dict(zip(settings, chosen, strict=True))
            best = score, Complete(kept, {present[levels][0]: levels for levels in grid}, tuple(seeds), found)
    return best[1] if best else None


def _subsets(settings: Mapping[str, Levels]) -> Iterable[tuple[Levels, ...]]:
    """Yields choices of levels for all settings: every subset, or if there are too many, all levels or a single one."""
    every = [
        [chosen for size in range(len(levels), 0, -1) for chosen in itertools.combinations(levels, size)]
        for levels in settings.values()
        if len(levels) <= 12
    ]
    if math.prod(map(len, every)) > _MOST_SUBSETS or len(every) < len(settings):
        every = [[levels, *((one,) for one in levels)] for levels in settings.values()]
    return itertools.product(*every)
