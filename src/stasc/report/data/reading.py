"""Reads the folder of a sweep or of a run: its runs, the settings that vary, and the runs that are missing."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stasc.records import Question
from stasc.report import design
from stasc.report.data.files import OUTCOMES, PAIRS, empty, is_run, read_run
from stasc.report.design import Design, Levels
from stasc.report.provenance import read_last, swept
from stasc.report.records import Run, Sweep
from stasc.settings.deciding import deciding
from stasc.settings.names import DECLARED


def read(folder: Path) -> Sweep:
    """Reads the runs of `multirun/NAME`, or a single run.

    Raises: ValueError if there is no run, or if runs were tested on different questions.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give multirun/NAME, or the folder of a run")
    single = is_run(folder)
    read_folders = [read_run(one) for one in ([folder] if single else sorted(folder.iterdir())) if is_run(one)]
    notes = [note for _, damage in read_folders for note in damage]
    notes += [f"{run.name} has no readable settings and is excluded" for run, _ in read_folders if not run.settings]
    found = [run for run, _ in read_folders if run.settings]
    if not found:
        faults = f" ({'; '.join(notes)})" if notes else ""
        raise ValueError(f"{folder} holds no run{faults}: give multirun/NAME, or the folder of a run")
    task = () if single else _task(folder, notes)
    ordinary = [run for run in found if not run.settings.get("baseline")]
    given = {text.partition("=")[0].lstrip("+~") for run in ordinary for text in run.overrides or ()}
    varying = design.find([run.settings for run in ordinary], [run.choices for run in ordinary], given)
    names = design.names(varying, [run.settings for run in ordinary])
    runs = [replace(run, cell=names[levels]) for run, levels in zip(ordinary, varying.of_run, strict=True)]
    baselines = [run for run in found if run.settings.get("baseline")]
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
        settings=varying.settings,
        cells=cells,
        runs=(*runs, *(_missing(cell, seed) for cell, seed in gone)),
        baselines=(*baselines, *(_missing(*one) for one in _baselines(asked, baselines) if one not in absent)),
        absent=tuple(unseen),
        declared=None if single else _declared(folder, notes),
        notes=tuple(notes),
        questions=_questions(found),
    )


def _missing(cell: str, seed: int) -> Run:
    outcomes, pairs = empty(OUTCOMES), empty(PAIRS)
    return Run(f"{cell}-seed{seed}", None, cell, seed, "missing", "", {}, (), outcomes, lambda: pairs, ())


def _once(runs: Sequence[Run], notes: list[str]) -> list[Run]:
    """Returns one run for each cell and seed: complete ones first, then those with the most iterations."""
    ranked = sorted(runs, key=lambda run: (run.complete, len(run.iterations)), reverse=True)
    chosen = {id(run) for run in {(run.cell, run.seed): run for run in reversed(ranked)}.values()}
    reason = "another run of the same variant and seed got as far or further"
    notes.extend(f"{run.name} is excluded: {reason}" for run in runs if id(run) not in chosen)
    return [run for run in runs if id(run) in chosen]


def _check_questions(runs: Sequence[Run]) -> None:
    """Checks that all runs were tested on the same questions. Raises: ValueError naming the setting that differs."""
    asked = [(run, {*run.outcomes.loc[run.outcomes["n"] == 0, "question"]}) for run in runs if run.complete]
    for (first, questions), (run, others) in zip(asked[:1] * len(asked), asked, strict=True):
        if others == questions:
            continue
        one, other = deciding(first.settings), deciding(run.settings)
        differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        suspects = [name for name in differing if name.startswith(("dataset.", "evaluation."))] or differing
        why = ", ".join(f"{name} is {one.get(name)} in one and {other.get(name)} in the other" for name in suspects)
        raise ValueError(
            f"{first.name} and {run.name} were tested on different questions ({len(questions)} and {len(others)}, "
            f"{len(questions & others)} in common; {why or 'their data changed'}), so they are not comparable; move "
            "one kind into a separate folder"
        )


def _task(folder: Path, notes: list[str]) -> Sequence[str]:
    """Returns the overrides of the sweep's last command, after those of its experiment."""
    try:
        params, typed = read_last(folder)
        return [*params, *typed]
    except FileNotFoundError:
        return ()
    except ValueError as error:
        notes.append(f"{error}, so runs that never started may go unnoticed")
        return ()


def _declared(folder: Path, notes: list[str]) -> tuple[int, ...] | None:
    """Returns the seeds that the sweep's first command declared, or None if an earlier version ran it."""
    path = folder / DECLARED
    try:
        return tuple(int(seed) for seed in json.loads(path.read_bytes())["seeds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{path} is damaged ({type(error).__name__}), so seeds that were added later are unknown")
        return None


def _expected(varying: Design, seeds: Iterable[int], command: Mapping[str, Levels]) -> list[tuple[Levels, int]]:
    """Returns the cells and seeds that the sweep should have.

    These are the cells with a run, at all seeds; those of the last command; and all combinations of levels if more than
    half of them have a run, because with fewer, no full factorial was intended.
    """
    known = varying.settings
    asked_seeds = _seeds(command)
    every_seed = sorted({*seeds, *asked_seeds})
    observed, grid = dict.fromkeys(varying.of_run), [*itertools.product(*known.values())]
    cells = grid if len(grid) < 2 * len(observed) else [levels for levels in grid if levels in observed]
    expected = dict.fromkeys(itertools.product(cells, every_seed))
    asked = [[one for one in command.get(name, levels) if one in levels] for name, levels in known.items()]
    if command and all(name in command for name in known) and "baseline" not in command:
        expected |= dict.fromkeys(itertools.product(itertools.product(*asked), asked_seeds or every_seed))
    return [(levels, seed) for levels in grid for seed in every_seed if (levels, seed) in expected]


def _seeds(command: Mapping[str, Levels]) -> list[int]:
    return [int(seed) for seed in command.get("seed", ()) if seed.lstrip("-").isdigit()]


def _unseen(found: Sequence[Run], command: Mapping[str, Levels]) -> list[str]:
    """Names the levels that the command asked for and no run has. The names of their cells are unknown."""
    present = [{**design.texts(one.settings), **one.choices} for one in found]
    return [
        f"no run has {name}={level}, which the sweep asked for"
        for name, levels in command.items()
        if name not in ("seed", "iterations", "baseline") and any(name in one for one in present)
        for level in levels
        if len(levels) > 1 and level not in {one.get(name) for one in present}
    ]


def _baselines(command: Mapping[str, Levels], present: Sequence[Run]) -> list[tuple[str, int]]:
    """Returns the baselines and seeds that the command asked for, by the names of the existing runs."""
    named = {str(run.settings["baseline"]): run.cell for run in present}
    seeds = _seeds(command) or [run.seed for run in present]
    asked = [one for one in command.get("baseline", ()) if one not in ("null", "none")]
    return [(named.get(one, one), seed) for one in asked for seed in sorted({*seeds})]


def _questions(found: Sequence[Run]) -> dict[str, Question]:
    """Reads the questions from the first run that has questions.jsonl."""
    paths = [run.folder / "questions.jsonl" for run in found if run.folder]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        return {}
    try:
        rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {row["id"]: Question(row["id"], row["question"], tuple(row["references"])) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):  # texts for display only
        return {}
