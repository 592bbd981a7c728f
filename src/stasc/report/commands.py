"""The commands that make a sweep's runs: the last, which Hydra keeps, and what runs that it does not make add up to."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stasc.report import design
from stasc.report.design import Levels
from stasc.report.records import Run

Product = Mapping[str, tuple[str, ...]]  # settings with their values, of which a sweep runs all combinations


def commands(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Each as one would type it. Of runs on their own, each one's."""
    runs = [run for run in runs if run.overrides is not None]
    try:
        params, last = read_last(folder)
    except FileNotFoundError:
        return list(dict.fromkeys(_typed(run.overrides or []) for run in runs))
    except ValueError:
        params, last = [], None
    made = _product([*params, *last]) if last is not None else None
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        if made is None or not _makes(made, _product(run.overrides or [])):
            experiment = [one for one in run.overrides or [] if one.startswith("experiment=")]
            names = (override.partition("=")[0] for override in run.overrides or [])
            groups.setdefault((*experiment, *sorted(names), *sorted(run.params.items())), []).append(run)
    found = [
        _without(one, group[0].params)
        for group in groups.values()
        for one in products([_product(run.overrides or []) for run in group])
    ]
    return [_typed(["--multirun", *task]) for task in (*found, *([last] if last is not None else []))]


def read_last(folder: Path) -> tuple[list[str], list[str]]:
    """The overrides of a sweep's last command: those that its experiment sweeps, and those that were typed.

    Raises: FileNotFoundError if there was no sweep, and ValueError if the file does not say.
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
    """The values that a command gives to settings, as levels."""
    return {name.lstrip("+~"): tuple(map(design.level, values)) for name, values in _product(task).items()}


def _product(task: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """A command's values, setting by setting, as typed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found: dict[str, tuple[str, ...]] = {}
    for text in task:
        name, _, value = text.partition("=")
        try:
            override = OverridesParser.create().parse_override(text)
            found[name] = tuple(override.sweep_string_iterator()) if override.is_sweep_override() else (value,)
        except (HydraException, ValueError):  # a command of another version, or an endless sweep
            continue
    return found


def _makes(command: Product, job: Product) -> bool:
    """Whether a job is one of a command's."""
    asked = {name: {*map(design.level, values)} for name, values in command.items()}
    return {*asked} == {*job} and all({*map(design.level, values)} <= asked[name] for name, values in job.items())


def products(jobs: Sequence[Product]) -> list[Product]:
    """Sweeps that run these jobs, each once, and no others: jobs are merged setting by setting, as far as that goes."""
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
    """A command's overrides: what its experiment sweeps anyway is left out, other settings of it come last."""
    usual = _product(f"{name}={values}" for name, values in params.items())
    given = [name for name in product if {*product[name]} != {*usual.get(name, ())}]
    names = sorted(given, key=lambda name: name in usual)
    return [name if name.startswith("~") else f"{name}={','.join(product[name])}" for name in names]


def _typed(arguments: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "stasc.run", *arguments])
