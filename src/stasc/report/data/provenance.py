"""The provenance of a sweep: versions, hardware, commits, data and commands, from the runs' journals."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stasc.report.commands import commands
from stasc.report.records import Sweep


def provenance(sweep: Sweep) -> dict[str, Any]:
    """Collects versions, machines, commits, data and commands, with every distinct value."""
    runs = [run for run in (*sweep.runs, *sweep.baselines) if run.folder]
    started = [event for run in runs for event in run.events if event["event"] == "run_started"]
    return {
        "commands": [*commands(sweep.folder, runs), shlex.join(["python", "-m", "stasc.report", _short(sweep.folder)])],
        "runs": {run.name: run.status for run in (*sweep.runs, *sweep.baselines)},
        "versions": _distinct(event.get("versions") for event in started),
        "machines": _distinct(event.get("machine") for event in started),
        "commits": _distinct(event.get("commit") for event in started),
        "data": _distinct(event.get("data") for event in started),
        "began": min((event["time"] for event in started), default=None),
        "ended": max((event["time"] for run in runs for event in run.events[-1:]), default=None),
        "report": {name: importlib.metadata.version(name) for name in ("stasc", "numpy", "scipy", "pandas")},
    }


def _short(folder: Path) -> str:
    """Returns the folder from multirun/ or outputs/ on, without the private part of its path."""
    parts = folder.parts
    known = [i for i, name in enumerate(parts[:-1]) if name in ("multirun", "outputs")]
    return "/".join(parts[known[-1] if known else -1 :])


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Returns the distinct values in order of appearance."""
    found = {json.dumps(value, sort_keys=True): value for value in values if value is not None}
    return [*found.values()]
