"""From the folder of a sweep, or of a run, to its runs: which settings vary, and which runs are not there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stasc.records import Question
from stasc.report import design
from stasc.report.commands import read_last, swept
from stasc.report.design import Design, Levels
from stasc.report.files import OUTCOMES, PAIRS, Found, empty, is_run, read_run
from stasc.report.records import Run, Sweep
from stasc.settings.names import DECLARED
from stasc.settings.table import deciding


def read(folder: Path) -> Sweep:
    """The runs of `multirun/NAME`, or the one run of a folder.

    Raises: ValueError if there are none, or if they were tested on different questions.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give multirun/NAME, or the folder of a run")
    single = is_run(folder)
    found = [read_run(one) for one in ([folder] if single else sorted(folder.iterdir())) if is_run(one)]
    notes = [note for one in found for note in one.notes]
    notes += [
        f"{one.folder.name} has no settings that can be read, so it is left out" for one in found if not one.settings
    ]
    found = [one for one in found if one.settings]
    ordinary = [one for one in found if not one.settings.get("baseline")]
    if not found:
        told = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"{folder} holds no run{told}: give multirun/NAME, or the folder of a run")
    task = () if single else _task(folder, notes)
    given = {text.partition("=")[0].lstrip("+~") for one in ordinary for text in one.overrides or ()}
    varying = design.find([one.settings for one in ordinary], [one.choices for one in ordinary], given)
    names = design.names(varying, [one.settings for one in ordinary])
    runs = [_run(one, names[levels]) for one, levels in zip(ordinary, varying.of_run, strict=True)]
    baselines = [_run(one, str(one.settings["variant"])) for one in found if one.settings.get("baseline")]
    runs, baselines = _once(runs, notes), _once(baselines, notes)
    _check_questions([*runs, *baselines])
    asked = swept(task)
    expected = _expected(varying, [run.seed for run in runs], asked)
    unseen = _unseen(ordinary, asked)
    notes += [*unseen, *varying.notes]
    there = {(run.cell, run.seed) for run in runs}
    gone = [(names[levels], seed) for levels, seed in expected if (names[levels], seed) not in there]
    absent = {(run.cell, run.seed) for run in baselines}
    cells = {names[levels]: dict(zip(varying.settings, levels, strict=True)) for levels, _ in expected}
    return Sweep(
        name=folder.name,
        folder=folder,
        factors=design.factors(varying.settings),
        settings=varying.settings,
        cells=cells,
        runs=(*runs, *(_missing(cell, seed) for cell, seed in gone)),
        baselines=(*baselines, *(_missing(*one) for one in _baselines(asked, baselines) if one not in absent)),
        absent=tuple(unseen),
        declared=None if single else _declared(folder, notes),
        notes=tuple(notes),
        questions=_questions(found),
    )


def _run(found: Found, cell: str) -> Run:
    return Run(
        name=found.folder.name,
        folder=found.folder,
        cell=cell,
        seed=int(found.settings["seed"]),
        status=found.status,
        error=found.error,
        settings=found.settings,
        iterations=found.iterations,
        outcomes=found.outcomes,
        pairs=found.pairs,
        events=found.events,
        overrides=found.overrides,
        params=found.params,
    )


def _missing(cell: str, seed: int) -> Run:
    outcomes, pairs = empty(OUTCOMES), empty(PAIRS)
    return Run(f"{cell}-seed{seed}", None, cell, seed, "missing", "", {}, (), outcomes, lambda: pairs, ())


def _once(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    """One run for each cell and seed: a complete one before others, and the one of most iterations."""
    ranked = sorted(runs, key=lambda run: (run.complete, len(run.iterations)), reverse=True)
    chosen = {id(run) for run in {(run.cell, run.seed): run for run in reversed(ranked)}.values()}
    notes.extend(
        f"{run.name} is left out: another run is of the same variant and seed, and as far or further"
        for run in runs
        if id(run) not in chosen
    )
    return [run for run in runs if id(run) in chosen]


def _check_questions(runs: Sequence[Run]) -> None:
    """Raises: ValueError naming the setting, if two runs were tested on different questions."""
    first: tuple[Run, frozenset[str]] | None = None
    for run in runs:
        if not run.complete:
            continue
        asked = frozenset(run.outcomes.loc[run.outcomes["n"] == 0, "question"])
        first = first or (run, asked)
        if asked == first[1]:
            continue
        one, other = deciding(first[0].settings), deciding(run.settings)
        differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        suspects = [name for name in differing if name.startswith(("dataset.", "evaluation."))] or differing
        why = ", ".join(f"{name} is {one.get(name)} in one and {other.get(name)} in the other" for name in suspects)
        raise ValueError(
            f"{first[0].name} and {run.name} were tested on different questions ({len(first[1])} and {len(asked)}, "
            f"{len(asked & first[1])} in common; {why or 'their data changed'}): what they say cannot be compared; "
            "move one kind into a folder of its own"
        )


def _task(folder: Path, notes: list[str]) -> Sequence[str]:
    """The overrides of the command that ran the sweep last; its experiment's own come first."""
    try:
        params, typed = read_last(folder)
        return [*params, *typed]
    except FileNotFoundError:
        return ()
    except ValueError as error:
        notes.append(f"{error}, so jobs that never began may not be missed")
        return ()


def _declared(folder: Path, notes: list[str]) -> tuple[int, ...] | None:
    """The seeds that the sweep's first command declared. None of a sweep of an earlier version."""
    path = folder / DECLARED
    try:
        return tuple(int(seed) for seed in json.loads(path.read_bytes())["seeds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{path} is damaged ({type(error).__name__}), so seeds that were added later cannot be named")
        return None


def _expected(varying: Design, seeds: Iterable[int], command: Mapping[str, Levels]) -> list[tuple[Levels, int]]:
    """The cells and seeds that there should be.

    These are the cells that have a run, with all seeds; what the last command swept; and all combinations of levels, if
    more than half of them have a run: with fewer, no full factorial was meant.
    """
    known = varying.settings
    asked_seeds = [int(seed) for seed in command.get("seed", ()) if seed.lstrip("-").isdigit()]
    every_seed = sorted({*seeds, *asked_seeds})
    observed, grid = dict.fromkeys(varying.of_run), [*itertools.product(*known.values())]
    cells = grid if len(grid) < 2 * len(observed) else [levels for levels in grid if levels in observed]
    expected = dict.fromkeys(itertools.product(cells, every_seed))
    asked = [[one for one in command.get(name, levels) if one in levels] for name, levels in known.items()]
    if command and all(name in command for name in known) and "baseline" not in command:
        expected |= dict.fromkeys(itertools.product(itertools.product(*asked), asked_seeds or every_seed))
    return [(levels, seed) for levels in grid for seed in every_seed if (levels, seed) in expected]


def _unseen(found: Sequence[Found], command: Mapping[str, Levels]) -> list[str]:
    """Levels that the command gave to a setting, and no run has: what these cells would be called, none can tell."""
    there = [{**design.texts(one.settings), **one.choices} for one in found]
    return [
        f"there is no run with {name}={level}, which the sweep asked for"
        for name, levels in command.items()
        if name not in ("seed", "iterations", "baseline") and any(name in one for one in there)
        for level in levels
        if len(levels) > 1 and level not in {one.get(name) for one in there}
    ]


def _baselines(command: Mapping[str, Levels], there: Sequence[Run]) -> list[tuple[str, int]]:
    """The baselines that the command asked for, by the names of those that there are."""
    named = {str(run.settings["baseline"]): run.cell for run in there}
    seeds = [int(seed) for seed in command.get("seed", ()) if seed.lstrip("-").isdigit()] or [run.seed for run in there]
    asked = [one for one in command.get("baseline", ()) if one not in ("null", "none")]
    return [(named.get(one, one), seed) for one in asked for seed in sorted({*seeds})]


def _questions(found: Sequence[Found]) -> dict[str, Question]:
    """The questions, where a run has left them."""
    path = next((one.folder / "questions.jsonl" for one in found if (one.folder / "questions.jsonl").exists()), None)
    if path is None:
        return {}
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: Question(row["id"], row["question"], tuple(row["references"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):  # texts for reading: no number rests on them
        return {}
