"""What a run's folder holds, read as far as it is whole."""

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
# `question` is the id here, as in files of schema 1. Those of schema 2 have it under `question_id`, beside the text.
OUTCOMES = pa.schema(
    {
        **{"n": pa.int32(), "question": pa.string(), "sample": pa.int32()},
        **_ANSWERS,
        **{"vote": pa.float64(), "vote_all": pa.float64()},  # where each question has several samples
    }
)
_OPTIONAL = ("vote", "vote_all", "dropped")
_ID = pa.field("question_id", pa.string())
PAIRS = pa.schema(
    {
        **{"n": pa.int32(), "question": pa.string(), "i": pa.int32(), "seen": pa.int32(), "k": pa.int32()},
        **_ANSWERS,
        "kept": pa.bool_(),
        "dropped": pa.string(),  # why it is not trained on
    }
)


def empty(schema: pa.Schema) -> pd.DataFrame:
    frame: pd.DataFrame = schema.empty_table().to_pandas()
    return frame


@dataclass
class Found:
    """A run's folder. `notes` say which of its files are damaged; a run is then no longer `complete`."""

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
    """All that a run's folder tells, but for its pairs."""
    found = Found(folder)
    _read_journal(found)
    _read_hydra(found)
    _read_summary(found)
    if found.iterations:
        _read_outcomes(found)
    found.notes = [note.replace(f"{folder.parent}/", "") for note in found.notes]
    return found


def read_pairs(path: Path) -> pd.DataFrame:
    """The training pairs that a run scored. Damaged lines are left out, with a warning."""
    if not path.exists():
        return empty(PAIRS)
    frame, told = _lines(path, path.read_bytes(), PAIRS)
    if told:
        log.warning("%s", told)
    return frame


def _read_journal(found: Found) -> None:
    path = found.folder / "journal.jsonl"
    if not path.exists():
        return
    try:
        found.events.extend(tracking.read(path))
    except (ValueError, OSError) as error:  # the events before it are there
        found.notes.append(str(error))
    for event in found.events:
        if event["event"] == "run_started":
            found.settings, found.error = event["config"], ""
        elif event["event"] == "run_ended":
            found.error = event.get("error") or ""


def _read_hydra(found: Found) -> None:
    """The options of groups, and of a run that did not get as far as its journal, the settings and what went wrong."""
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


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of 80 runs, the plain one takes seconds


def _settings(path: Path) -> dict[str, Any]:
    """Composed settings as their file has them, interpolations resolved where that can be done without Hydra."""
    config = OmegaConf.load(path)

    def resolved(value: Any, name: str) -> Any:
        if isinstance(value, dict):
            return {key: resolved(inner, f"{name}.{key}" if name else str(key)) for key, inner in value.items()}
        try:
            return OmegaConf.select(config, name) if isinstance(value, str) and "${" in value else value
        except OmegaConfBaseException:  # a time, or what only Hydra knows
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
    found.outcomes, told = _lines(path, content, OUTCOMES)
    if told:
        _damaged(found, told)
    elif sha256 and found.status in COMPLETE and hashlib.sha256(content).hexdigest() != sha256:
        _damaged(found, f"{path} was changed after the run had ended")
    else:
        rows = found.outcomes["n"].value_counts()
        for entry in found.iterations:
            if rows.get(entry["n"], 0) != entry["test"]["pairs"]:
                told = f"{rows.get(entry['n'], 0)} of the {entry['test']['pairs']} answers of iteration {entry['n']}"
                _damaged(found, f"{path} holds {told}")


def _damaged(found: Found, told: str) -> None:
    found.notes.append(told)
    if found.status in COMPLETE:
        found.status = "damaged"


def _lines(path: Path, content: bytes, schema: pa.Schema) -> tuple[pd.DataFrame, str]:
    """JSON Lines as a table, and what is wrong with them: lines that are damaged are left out."""
    options = pa.json.ParseOptions(explicit_schema=schema.append(_ID), unexpected_field_behavior="ignore")
    told = ""
    if not content:
        return empty(schema), told
    try:
        table = pa.json.read_json(io.BytesIO(content), parse_options=options)
    except pa.ArrowInvalid:  # which names no line
        whole, damaged = [], []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                whole.append(_row(line, schema))
            except (ValueError, KeyError, TypeError):
                damaged.append(str(number))
        table = pa.Table.from_pylist(whole, schema.append(_ID))
        if damaged:
            told = f"{path}: damaged at line {', '.join(damaged[:5])}{' and others' if len(damaged) > 5 else ''}"
    ids = table.column(_ID.name)
    if ids.null_count < len(ids):
        table = table.set_column(table.schema.get_field_index("question"), "question", ids)
    return table.select(schema.names).to_pandas(), told


def _row(line: bytes, schema: pa.Schema) -> dict[str, Any]:
    row = json.loads(line)
    found = {name: row.get(name) if name in _OPTIONAL else row[name] for name in schema.names}
    found[_ID.name] = row.get(_ID.name)
    found["question"] = found["question"] if found[_ID.name] is None else found[_ID.name]
    for name in ("y1", "y2"):
        found[name] = found[name].encode("utf-8", "replace").decode()  # half a character has no place in a table
    pa.RecordBatch.from_pylist([found], schema.append(_ID))  # fails if a value is of another type
    return found


def _first(error: Exception) -> str:
    """An error's first line."""
    return next(iter(str(error).splitlines()), type(error).__name__)
