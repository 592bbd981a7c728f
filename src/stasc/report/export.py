"""Writes report.json, and the outcomes of a sweep as one table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from stasc.machine import durable
from stasc.report.data.files import is_run
from stasc.report.records import Analysis, Run, Sweep

SCHEMA = 1  # schema version of report.json


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Returns the content of report.json: the fields of `records.Analysis`, and the schema version."""
    return {"schema": SCHEMA, **asdict(analysis)}


def tidy(run: Run) -> pd.DataFrame:
    """Returns a table with a row for each pair of a run's test answers: whether each is right, and their rewards."""
    outcomes, correct_at = run.outcomes, float(run.settings["correct_at"])
    voted = {"vote": outcomes["vote"]} if "vote" in outcomes and outcomes["vote"].notna().any() else {}
    return pd.DataFrame(
        {
            "cell": run.cell,
            "baseline": run.settings.get("baseline"),
            "seed": run.seed,
            "complete": run.complete,
            "iteration": outcomes["n"],
            "question_id": outcomes["question"],
            "sample": outcomes["sample"],
            "initial": (outcomes["r1"] >= correct_at).astype(int),
            "corrected": (outcomes["r2"] >= correct_at).astype(int),
            "initial_reward": outcomes["r1"],
            "reward": outcomes["r2"],
            **voted,
        }
    )


def write(sweep: Sweep, analysis: Analysis, folder: Path) -> list[str]:
    """Writes report.json and, for a sweep, outcomes.jsonl. Returns: the names of the files."""
    content = json.dumps(as_json(analysis), indent=1, ensure_ascii=False, allow_nan=False)
    durable.write(folder / "report.json", content.encode() + b"\n")
    if is_run(folder):
        return ["report.json"]  # a run has an outcomes.jsonl of its own
    runs = [run for run in (*sweep.runs, *sweep.baselines) if len(run.outcomes)]
    lines = (str(tidy(run).to_json(orient="records", lines=True, double_precision=6)) for run in runs)
    durable.write(folder / "outcomes.jsonl", "".join(lines).replace("\\/", "/").encode())  # pandas escapes slashes
    return ["report.json", "outcomes.jsonl"]
