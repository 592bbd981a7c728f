"""The report's numbers as files: report.json, and all outcomes of a sweep in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from stasc import fsx
from stasc.report.files import is_run
from stasc.report.records import Analysis, Sweep

SCHEMA = 1  # of report.json


def as_json(analysis: Analysis) -> dict[str, Any]:
    """What report.json holds: the fields of `records.Analysis`, and the version of this form."""
    return {"schema": SCHEMA, **_plain(asdict(analysis))}


def _plain(value: Any) -> Any:
    """Keys as text. Raises: ValueError for a number that JSON has not."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def tidy(sweep: Sweep) -> pd.DataFrame:
    """A line for each pair of test answers of all runs: whether each was right, and their rewards."""
    frames = [
        pd.DataFrame(
            {
                "cell": run.cell,
                "baseline": run.settings.get("baseline"),
                "seed": run.seed,
                "complete": run.complete,
                "iteration": run.outcomes["n"],
                "question": run.outcomes["question"],
                "sample": run.outcomes["sample"],
                "initial": (run.outcomes["r1"] >= float(run.settings["correct_at"])).astype(int),
                "corrected": (run.outcomes["r2"] >= float(run.settings["correct_at"])).astype(int),
                "initial_reward": run.outcomes["r1"],
                "reward": run.outcomes["r2"],
            }
        )
        for run in (*sweep.runs, *sweep.baselines)
        if len(run.outcomes)
    ]
    return pd.concat(frames, ignore_index=True)


def write(sweep: Sweep, analysis: Analysis, folder: Path) -> list[str]:
    """Writes report.json and, of a sweep, outcomes.jsonl, which a run has anyway. Returns: the files' names."""
    content = json.dumps(as_json(analysis), indent=1, ensure_ascii=False, allow_nan=False)
    fsx.write(folder / "report.json", content.encode() + b"\n")
    if is_run(folder):
        return ["report.json"]
    lines: str = tidy(sweep).to_json(orient="records", lines=True, double_precision=6)
    fsx.write(folder / "outcomes.jsonl", lines.encode())
    return ["report.json", "outcomes.jsonl"]
