"""What a sweep's runs were made with, as their journals have it."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from stasc.report.records import Run, Sweep


def provenance(sweep: Sweep) -> dict[str, Any]:
    """Versions, machines, commits, data and commands. Where runs differ, all that there are."""
    runs = [run for run in (*sweep.runs, *sweep.baselines) if run.folder]
    started = [event for run in runs for event in run.events if event["event"] == "run_started"]
    return {
        "runs": {run.name: run.status for run in (*sweep.runs, *sweep.baselines)},
        "versions": _distinct(event.get("versions") for event in started),
        "machines": _distinct(event.get("machine") for event in started),
        "commits": _distinct(event.get("commit") for event in started),
        "data": _distinct(event.get("data") for event in started),
        "began": min((event["time"] for event in started), default=None),
        "ended": max((event["time"] for run in runs for event in run.events[-1:]), default=None),
        "commands": [
            *_commands(sweep.folder, runs),
            shlex.join(["python", "-m", "stasc.report", _short(sweep.folder)]),
        ],
        "report": {name: importlib.metadata.version(name) for name in ("stasc", "numpy", "scipy", "pandas")},
    }


def _short(folder: Path) -> str:
    """As one would give it: where the folder lies on this machine is nobody's business."""
    return f"multirun/{folder.name}" if folder.parent.name == "multirun" else folder.name


def _distinct(values: Iterable[Any]) -> list[Any]:
    """In the order in which they are first there."""
    found = {json.dumps(value, sort_keys=True): value for value in values if value is not None}
    return [*found.values()]


def _commands(folder: Path, runs: Iterable[Run]) -> list[str]:
    """The command that ran these: the folder's last, all that Hydra keeps; of runs on their own, each one's."""
    if (task := _task(folder / "multirun.yaml")) is not None:
        return [shlex.join(["python", "-m", "stasc.run", "--multirun", *task])]
    tasks = [_task(run.folder / ".hydra" / "hydra.yaml") for run in runs if run.folder]
    return [shlex.join(["python", "-m", "stasc.run", *task]) for task in tasks if task is not None]


def _task(path: Path) -> list[str] | None:
    try:
        content: Mapping[str, Any] = yaml.safe_load(path.read_bytes())
        return [str(one) for one in content["hydra"]["overrides"]["task"]]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
