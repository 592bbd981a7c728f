"""Reads a run's folder, and reports damaged files instead of failing."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.json
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stasc import tracking
from stasc.report.records import Run
from stasc.tracking import COMPLETE

log = logging.getLogger(__name__)

_ANSWERS = {"y1": pa.string(), "y2": pa.string(), "r1": pa.float64(), "r2": pa.float64()}
# `question` is the id, as in files of schema 1. Files of schema 2 have the id under `question_id`, beside the text.
OUTCOMES = pa.schema(
    {
        **{"n": pa.int32(), "question": pa.string(), "sample": pa.int32()},
        **_ANSWERS,
        **{"vote": pa.float64(), "vote_all": pa.float64()},  # if questions have several samples
    }
)
_OPTIONAL = ("vote", "vote_all", "dropped")
_ID = pa.field("question_id", pa.string())
PAIRS = pa.schema(
    {
        **{"n": pa.int32(), "question": pa.string(), "i": pa.int32(), "seen": pa.int32(), "k": pa.int32()},
        **_ANSWERS,
        "kept": pa.bool_(),
        "dropped": pa.string(),  # the reason why the pair is not trained on
    }
)


def empty(schema: pa.Schema) -> pd.DataFrame:
    return pd.DataFrame(schema.empty_table().to_pandas())


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (".hydra", "summary.json", "journal.jsonl"))


def read_run(folder: Path) -> tuple[Run, list[str]]:
    """Reads a run's folder, except for its pairs. Returns: the run, and notes that name damaged files.

    Damage makes a complete run `damaged`. Without readable settings, `settings` is empty and `seed` is -1.
    """
    notes: list[str] = []
    events = _events(folder, notes)
    settings: Mapping[str, Any] = {}
    error = ""
    for event in events:
        if event["event"] == "run_started":
            settings, error = event["config"], ""
        elif event["event"] == "run_ended":
            error = event.get("error") or ""
    hydra = _hydra(folder, notes)
    if not settings and (composed := folder / ".hydra" / "config.yaml").exists():
        settings = _composed(composed, notes)
        if (log_file := folder / "run.log").exists():
            lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            error = lines[-1] if lines else ""
    status, iterations = _summary(folder, "failed" if error else "unfinished", notes)
    outcomes = empty(OUTCOMES)
    if iterations:
        ended: dict[str, Any] = next((event for event in reversed(events) if event["event"] == "run_ended"), {})
        sha256 = (ended.get("files") or {}).get("outcomes.jsonl") if status in COMPLETE else None
        outcomes, damage = _outcomes(folder / "outcomes.jsonl", iterations, sha256)
        notes += damage
        status = "damaged" if damage and status in COMPLETE else status
    run = Run(
        name=folder.name,
        folder=folder,
        cell=str(settings.get("variant", "")),
        seed=int(settings.get("seed", -1)),
        status=status,
        error=error,
        settings=settings,
        iterations=iterations,
        outcomes=outcomes,
        pairs=partial(read_pairs, folder / "pairs.jsonl"),
        events=events,
        **hydra,
    )
    return run, [note.replace(f"{folder.parent}/", "") for note in notes]


def read_pairs(path: Path) -> pd.DataFrame:
    """Reads the training pairs of a run. Damaged lines are skipped with a warning."""
    if not path.exists():
        return empty(PAIRS)
    frame, damage = _lines(path, path.read_bytes(), PAIRS)
    if damage:
        log.warning("%s", damage)
    return frame


def _events(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    try:
        events.extend(tracking.read(folder / "journal.jsonl"))
    except FileNotFoundError:
        pass
    except (ValueError, OSError) as error:  # the events before the damage were read
        notes.append(str(error))
    return events


def _hydra(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Returns what Hydra recorded of the run, by the names of `Run`'s fields."""
    path, found = folder / ".hydra" / "hydra.yaml", dict[str, Any]()
    try:
        hydra = _Loader(path.read_bytes()).get_single_data()["hydra"]
        found["choices"] = {name: option for name, option in hydra["runtime"]["choices"].items() if option}
        found["overrides"] = tuple(hydra["overrides"]["task"])
        params = (hydra.get("sweeper") or {}).get("params") or {}
        found["params"] = {name: str(text) for name, text in params.items()}
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{path} is damaged ({_first(error)})")
    return found


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure Python loader takes seconds for 80 runs


def _composed(path: Path, notes: list[str]) -> dict[str, Any]:
    """Reads composed settings, with the interpolations that can be resolved without Hydra."""

    def resolved(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: resolved(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
        try:
            return OmegaConf.select(config, name) if isinstance(value, str) and "${" in value else value
        except OmegaConfBaseException:  # a resolver that only Hydra has
            return value

    try:
        config = OmegaConf.load(path)
        settings: dict[str, Any] = resolved(OmegaConf.to_container(config), "")
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, AttributeError) as error:
        notes.append(f"{path} is damaged ({_first(error)})")
        return {}
    return settings


def _summary(folder: Path, otherwise: str, notes: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """Returns the status and the iterations of summary.json, or without that file, the status `otherwise`."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
        status, iterations = str(summary["status"]), [*summary["iterations"]]
        [(entry["n"], entry["test"]["pairs"]) for entry in iterations]
    except FileNotFoundError:
        return otherwise, []
    except (OSError, ValueError, KeyError, TypeError) as error:
        notes.append(f"{path} is damaged ({_first(error)})")
        return "damaged", []
    return "unfinished" if status == "running" else status, iterations


def _outcomes(
    path: Path, iterations: Sequence[Mapping[str, Any]], sha256: str | None
) -> tuple[pd.DataFrame, list[str]]:
    """Returns the answers to test questions, and notes on damage. A `sha256` is that of the undamaged file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return empty(OUTCOMES), [f"{path} cannot be read ({_first(error)})"]
    outcomes, damage = _lines(path, content, OUTCOMES)
    if damage:
        return outcomes, [damage]
    if sha256 and hashlib.sha256(content).hexdigest() != sha256:
        return outcomes, [f"{path} was changed after the run ended"]
    rows, pairs = outcomes["n"].value_counts(), {entry["n"]: entry["test"]["pairs"] for entry in iterations}
    return outcomes, [
        f"{path} holds {rows.get(n, 0)} of the {count} answers of iteration {n}"
        for n, count in pairs.items()
        if rows.get(n, 0) != count
    ]


def _lines(path: Path, content: bytes, schema: pa.Schema) -> tuple[pd.DataFrame, str]:
    """Returns JSON Lines as a table without the damaged lines, and a note that names those."""
    options = pa.json.ParseOptions(explicit_schema=schema.append(_ID), unexpected_field_behavior="ignore")
    note = ""
    if not content:
        return empty(schema), note
    try:
        table = pa.json.read_json(io.BytesIO(content), parse_options=options)
    except pa.ArrowInvalid:  # without the number of the line
        whole, damaged = [], []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                whole.append(_row(line, schema))
            except (ValueError, KeyError, TypeError):
                damaged.append(str(number))
        table = pa.Table.from_pylist(whole, schema.append(_ID))
        if damaged:
            note = f"{path}: damaged at line {', '.join(damaged[:5])}{' and others' if len(damaged) > 5 else ''}"
    ids = table.column(_ID.name)
    if ids.null_count < len(ids):
        table = table.set_column(table.schema.get_field_index("question"), "question", ids)
    return table.select(schema.names).to_pandas(), note


def _row(line: bytes, schema: pa.Schema) -> dict[str, Any]:
    row = json.loads(line)
    found = {name: row.get(name) if name in _OPTIONAL else row[name] for name in schema.names}
    found[_ID.name] = row.get(_ID.name)
    found["question"] = found["question"] if found[_ID.name] is None else found[_ID.name]
    for name in ("y1", "y2"):
        found[name] = found[name].encode("utf-8", "replace").decode()  # a lone surrogate is not valid in a table
    pa.RecordBatch.from_pylist([found], schema.append(_ID))  # raises on a value of another type
    return found


def _first(error: Exception) -> str:
    """Returns the first line of an error."""
    return next(iter(str(error).splitlines()), type(error).__name__)
