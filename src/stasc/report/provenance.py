"""The provenance of a sweep: versions, hardware, commits and data from its runs' journals, and its commands.

The last command is in the file that Hydra keeps; earlier ones are reconstructed from their runs.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from stasc.report import design
from stasc.report.design import Levels
from stasc.report.records import Run, Sweep

Product = Mapping[str, tuple[str, ...]]  # settings with their values; a sweep runs all combinations


def provenance(sweep: Sweep) -> dict[str, Any]:
    """Collects versions, machines, commits, data and commands, with every distinct value."""
    every = (*sweep.runs, *sweep.baselines)
    runs = [run for run in every if run.folder]
    started = [event for run in runs for event in run.events if event["event"] == "run_started"]
    return {
        "commands": [*commands(sweep.folder, runs), shlex.join(["python", "-m", "stasc.report", _short(sweep.folder)])],
        "runs": {run.name: run.status for run in every},
        "versions": _distinct(event.get("versions") for event in started),
        "machines": _distinct(event.get("machine") for event in started),
        "commits": _distinct(event.get("commit") for event in started),
        "data": _distinct(event.get("data") for event in started),
        "began": min((event["time"] for event in started), default=None),
        "ended": max((event["time"] for run in runs for event in run.events[-1:]), default=None),
        "report": {name: importlib.metadata.version(name) for name in ("stasc", "numpy", "scipy", "pandas")},
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Returns the distinct values in order of appearance."""
    return [*{json.dumps(value, sort_keys=True): value for value in values if value is not None}.values()]


def _short(folder: Path) -> str:
    """Returns the folder from multirun/ or outputs/ on, without the private part of its path."""
    parts = folder.parts
    known = [i for i, name in enumerate(parts[:-1]) if name in ("multirun", "outputs")]
    return "/".join(parts[known[-1] if known else -1 :])


def commands(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Returns the commands that make a folder's runs, as one would type them; one for each run outside a sweep."""
    jobs = [(run.params, run.overrides) for run in runs if run.overrides is not None]
    made = last = None
    try:
        params, last = read_last(folder)
        made = _product([*params, *last])
    except FileNotFoundError:
        return list(dict.fromkeys(_typed(task) for _, task in jobs))
    except ValueError:  # a damaged file, of which reading the runs warns
        pass
    groups: dict[tuple[tuple[object, ...], tuple[tuple[str, str], ...]], list[Product]] = {}
    for usual, task in jobs:
        job = _product(task)
        if made is None or not _makes(made, job):
            groups.setdefault(((job.get("experiment"), *sorted(job)), tuple(sorted(usual.items()))), []).append(job)
    found = [_without(one, dict(usual)) for (_, usual), group in groups.items() for one in products(group)]
    return [_typed(["--multirun", *task]) for task in (*found, *([] if last is None else [last]))]


def read_last(folder: Path) -> tuple[list[str], list[str]]:
    """Returns the overrides of a sweep's last command: those that its experiment sweeps, and those that were typed.

    Raises: FileNotFoundError without a sweep, and ValueError for a damaged file.
    """
    path = folder / "multirun.yaml"
    try:
        hydra: Mapping[str, Any] = yaml.safe_load(path.read_bytes())["hydra"]
        params = (hydra.get("sweeper") or {}).get("params") or {}
        return [f"{name}={values}" for name, values in params.items()], [str(one) for one in hydra["overrides"]["task"]]
    except FileNotFoundError:
        raise
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__})") from error


def swept(task: Iterable[str]) -> dict[str, Levels]:
    """Returns the values that a command gives to settings, as levels."""
    return {name.lstrip("+~"): tuple(map(design.level, values)) for name, values in _product(task).items()}


def _product(task: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns a command's values, setting by setting."""
    found: dict[str, tuple[str, ...]] = {}
    for override in task:
        name, _, value = override.partition("=")
        with suppress(ValueError, ArithmeticError):  # a sweep that has no list of values
            found[name] = _values(value)
    return found


def _values(text: str) -> tuple[str, ...]:
    """Returns the values that an override sweeps, or the one value that it sets, spelt as Hydra spells a job's.

    Raises: ValueError or ArithmeticError for sweeps other than a,b and choice(a,b) and range(start,stop,step).
    """
    if function := re.fullmatch(r"(choice|range|glob|interval|shuffle|sort|tag)\((.*)\)", text, re.S):
        name, elements = function[1], _split(function[2])
        if name == "range":
            numbers = [Decimal(element.rpartition("=")[2]) for element in elements]
            start, stop, step = [*[Decimal(0)][: len(numbers) == 1], *numbers, Decimal(1)][:3]
            return tuple(str(start + n * step) for n in range(math.ceil((stop - start) / step)))
        if name != "choice":
            raise ValueError(f"{text}: the values of {name}(...) are not known")
    elif len(elements := _split(text)) == 1:
        return (text,)
    return tuple(element.capitalize() if element.lower() in ("true", "false") else element for element in elements)


def _split(text: str) -> list[str]:
    """Returns what stands between commas outside quotes and brackets."""
    depth, cuts = 0, [-1]
    for found in re.finditer(r"""\\.|(['"])(?:\\.|(?!\1).)*\1|[][(){},]""", text, re.S):
        depth += (found[0] in "[({") - (found[0] in "])}")
        if found[0] == "," and not depth:
            cuts.append(found.start())
    return [text[before + 1 : cut].strip() for before, cut in pairwise([*cuts, len(text)])]


def _makes(command: Product, job: Product) -> bool:
    """Whether a command makes this job."""
    asked, made = ({name: {*map(design.level, values)} for name, values in one.items()} for one in (command, job))
    return {*asked} == {*made} and all(made[name] <= asked[name] for name in made)


def products(jobs: Sequence[Product]) -> list[Product]:
    """Returns sweeps that run exactly these jobs, each once, by merging jobs setting by setting."""
    found = [dict(job) for job in jobs]
    for name in dict.fromkeys(name for job in found for name in job):
        merged: dict[frozenset[tuple[str, frozenset[str]]], dict[str, tuple[str, ...]]] = {}
        for one in found:
            rest = frozenset((other, frozenset(values)) for other, values in one.items() if other != name)
            known = merged.setdefault(rest, one)
            known[name] = tuple(dict.fromkeys([*known[name], *one[name]]))
        found = [*merged.values()]
    return [*found]


def _without(product: Product, params: Mapping[str, str]) -> list[str]:
    """Returns the overrides that differ from what a command's experiment sweeps; those of swept settings come last."""
    usual = _product(f"{name}={values}" for name, values in params.items())
    levels = [{name: {*map(design.level, values)} for name, values in one.items()} for one in (product, usual)]
    names = sorted((name for name in product if levels[0][name] != levels[1].get(name, set())), key=usual.__contains__)
    return [name if name.startswith("~") else f"{name}={','.join(product[name])}" for name in names]


def _typed(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "stasc.run", *arguments])
