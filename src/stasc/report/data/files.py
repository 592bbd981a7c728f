"""Reads a run's folder, and reports damaged files instead of failing."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    frame: pd.DataFrame = schema.empty_table().to_pandas()
    return frame


@dataclass
class Found:
    """The content of a run's folder. `notes` name damaged files, which make a complete run `damaged`."""

    folder: Path
    status: str = "unfinished"
    error: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, str] = field(default_factory=dict)  # of config groups
    overrides: tuple[str, ...] | None = None
    params: Mapping[str, str] = field(default_factory=dict)  # what its experiment sweeps
    iterations: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    outcomes: pd.DataFrame = field(default_factory=lambda: empty(OUTCOMES))
    notes: list[str] = field(default_factory=list)

    @property
    def pairs(self) -> Callable[[], pd.DataFrame]:
        return partial(read_pairs, self.folder / "pairs.jsonl")


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (".hydra", "summary.json", "journal.jsonl"))


def read_run(folder: Path) -> Found:
    """Reads a run's folder, except for its pairs."""
    found = Found(folder)
    _read_journal(found)
    _read_hydra(found)
    _read_summary(found)
    if found.iterations:
        _read_outcomes(found)
    found.notes = [note.replace(f"{folder.parent}/", "") for note in found.notes]
    return found


def read_pairs(path: Path) -> pd.DataFrame:
    """Reads the training pairs of a run. Damaged lines are skipped with a warning."""
    if not path.exists():
        return empty(PAIRS)
    frame, damage = _lines(path, path.read_bytes(), PAIRS)
    if damage:
        log.warning("%s", damage)
    return frame


def _read_journal(found: Found) -> None:
    path = found.folder / "journal.jsonl"
    if not path.exists():
        return
    try:
        found.events.extend(tracking.read(path))
    except (ValueError, OSError) as error:  # the events before the damage were read
        found.notes.append(str(error))
    for event in found.events:
        if event["event"] == "run_started":
            found.settings, found.error = event["config"], ""
        elif event["event"] == "run_ended":
            found.error = event.get("error") or ""


def _read_hydra(found: Found) -> None:
    """Reads the options of config groups; without a journal, also the settings and the last line of the log."""
    try:
        hydra = _Loader((found.folder / ".hydra" / "hydra.yaml").read_bytes()).get_single_data()["hydra"]
        found.choices = {name: option for name, option in hydra["runtime"]["choices"].items() if option}
        found.overrides = tuple(hydra["overrides"]["task"])
        found.params = {name: str(text) for name, text in ((hydra.get("sweeper") or {}).get("params") or {}).items()}
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        found.notes.append(f"{found.folder / '.hydra' / 'hydra.yaml'} is damaged ({_first(error)})")
    path = found.folder / ".hydra" / "config.yaml"
    if found.settings or not path.exists():
        return
    try:
        found.settings = _settings(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, AttributeError) as error:
        found.notes.append(f"{path} is damaged ({_first(error)})")
    if (log_file := found.folder / "run.log").exists():
        lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        found.error = lines[-1] if lines else ""


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the pure Python loader takes seconds for 80 runs


def _settings(path: Path) -> dict[str, Any]:
    """Reads composed settings, with the interpolations that can be resolved without Hydra."""
    config = OmegaConf.load(path)

    def resolved(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: resolved(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
        try:
            return OmegaConf.select(config, name) if isinstance(value, str) and "${" in value else value
        except OmegaConfBaseException:  # a resolver that only Hydra has
            return value

    settings: dict[str, Any] = resolved(OmegaConf.to_container(config), "")
    return settings


def _read_summary(found: Found) -> None:
    path = found.folder / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
        status, found.iterations = str(summary["status"]), [*summary["iterations"]]
        found.status = "unfinished" if status == "running" else status
        [(entry["n"], entry["test"]["pairs"]) for entry in found.iterations]
    except FileNotFoundError:
        if found.error:
            found.status = "failed"
    except (OSError, ValueError, KeyError, TypeError) as error:
        found.status, found.iterations = "damaged", []
        found.notes.append(f"{path} is damaged ({_first(error)})")


def _read_outcomes(found: Found) -> None:
    path = found.folder / "outcomes.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        _damaged(found, f"{path} cannot be read ({_first(error)})")
        return
    ended: dict[str, Any] = next((event for event in reversed(found.events) if event["event"] == "run_ended"), {})
    sha256 = (ended.get("files") or {}).get(path.name)
    found.outcomes, damage = _lines(path, content, OUTCOMES)
    if damage:
        _damaged(found, damage)
    elif sha256 and found.status in COMPLETE and hashlib.sha256(content).hexdigest() != sha256:
        _damaged(found, f"{path} was changed after the run ended")
    else:
        rows = found.outcomes["n"].value_counts()
        for entry in found.iterations:
            if rows.get(entry["n"], 0) != entry["test"]["pairs"]:
                part = f"{rows.get(entry['n'], 0)} of the {entry['test']['pairs']} answers of iteration {entry['n']}"
                _damaged(found, f"{path} holds {part}")


def _damaged(found: Found, note: str) -> None:
    found.notes.append(note)
    if found.status in COMPLETE:
        found.status = "damaged"


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
