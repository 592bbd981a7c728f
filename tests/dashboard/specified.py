"""Reads panels, metric names and settings from the specification of a W&B report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stasc.dashboard import __main__ as dashboard


def written(folder: Path, *options: str) -> dict[str, Any]:
    """Runs the command. Returns: the specification that it writes."""
    file = folder / "dashboard.json"
    dashboard.main(["stasc", "--output", str(file), *options])
    spec: dict[str, Any] = json.loads(file.read_text())
    return spec


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["spec"]["blocks"] if block["type"] == "panel-grid"]


def panels(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for grid in grids(spec) for panel in grid["panelBankSectionConfig"]["panels"]]


def shown(spec: dict[str, Any]) -> dict[str, set[str]]:
    """Returns all metric names in a specification, by where W&B looks them up."""
    names: dict[str, set[str]] = {"history": set(), "summary": set(), "config": set(), "table": set()}
    accessors = [name for grid in grids(spec) for one in grid["runSets"] for name in one["runFeed"]["columnOrder"]]
    for panel in panels(spec):
        config = panel["config"]
        accessors += [column["accessor"] for column in config.get("columns", ())]
        names["history" if "xAxis" in config else "summary"].update(config.get("metrics", ()))
        names["history"].update([config["xAxis"]] if "xAxis" in config else ())
        accessors += [f"config:{config['groupBy']}"] if config.get("groupBy", "jobType") != "jobType" else []
        names["table"].update(re.findall(r"'key': {[^}]*'val': '([\w/]+)'", str(config)))
    for accessor in accessors:
        kind, _, name = accessor.partition(":")
        if kind != "run":
            first, _, rest = name.partition(".value")  # as {"sampling": {"value": {"n_corr": 2}}}
            names[kind].add(first + rest)
    return names


def titles(spec: dict[str, Any]) -> list[str]:
    """Returns the titles of the panels, or the names of the tables, in the order of the report."""
    found = []
    for panel in panels(spec):
        (table,) = re.findall(r"'key': {[^}]*'val': '([\w/]+)'", str(panel["config"])) or [None]
        found.append(table or panel["config"]["chartTitle"])
    return found


def bars(spec: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns the metric and the grouping of each bar plot."""
    configs = [panel["config"] for panel in panels(spec) if panel["viewType"] == "Bar Chart"]
    return [(*config["metrics"], config["groupBy"]) for config in configs]


def without_ids(spec: Any) -> Any:
    """Returns a part of a specification without the random ids of the library."""
    if isinstance(spec, dict):
        return {name: without_ids(part) for name, part in spec.items() if name not in ("id", "__id__")}
    return [without_ids(part) for part in spec] if isinstance(spec, list) else spec
