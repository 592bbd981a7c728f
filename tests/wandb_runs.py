"""The runs and artifacts of the fake W&B backend, with config, metrics and tables as W&B shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

HISTORY, EVENTS, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"
CLIENT_PATH = "wandb-client-artifact://"


class TableRows(NamedTuple):
    """A logged table."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Metric:
    """A definition made by `define_metric`: a name or a glob."""

    name: str
    step_metric: str | None = None
    hidden: bool = False


@dataclass
class Artifact:
    """A version of an artifact. An incremental one adds its entries to those of its base."""

    id: str
    name: str
    digest: str
    client_ids: set[str] = field(default_factory=set)  # of all that logged this content
    base: Artifact | None = None
    committed: bool = False
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)

    def entries(self) -> dict[str, bytes]:
        """Returns the files of all entries, including those of the base, by name."""
        base = self.base.entries() if self.base else {}
        listed: Mapping[str, Any] = json.loads(self.manifest)["contents"] if self.manifest else {}
        return base | {name: data for name, data in self.files.items() if name in listed}


@dataclass
class FakeRun:
    """A run on the server, as it was sent."""

    id: str
    project: str
    entity: str
    name: str
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    host: str | None = None
    tags: list[str] = field(default_factory=list)
    raw_config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, list[str | None]] = field(default_factory=dict)  # of the streamed files; None: dropped or missing
    dropped: int = 0  # history rows whose step was not above the last
    exit_code: int | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)

    @property
    def state(self) -> str:
        """Running, finished or failed. W&B calls a running one crashed after minutes without a heartbeat."""
        return "running" if self.exit_code is None else "failed" if self.exit_code else "finished"

    @property
    def crashed(self) -> bool:
        """Whether the run never told its end: true of a running one too."""
        return self.exit_code is None

    @property
    def config(self) -> dict[str, Any]:
        """The settings, without W&B's own."""
        return {name: item["value"] for name, item in self.raw_config.items() if name != "_wandb"}

    @property
    def metrics(self) -> list[Metric]:
        """The definitions of metrics. The config encodes them by field numbers, and step metrics by position."""
        listed = self.raw_config.get("_wandb", {}).get("value", {}).get("m", [])
        names = [item.get("1") or item.get("2", "") for item in listed]
        return [
            Metric(
                name=name,
                step_metric=item.get("4") or (names[item["5"] - 1] if item.get("5") else None),
                hidden=2 in item.get("6", []),
            )
            for name, item in zip(names, listed, strict=True)
        ]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The stored rows, in order."""
        return [json.loads(line) for line in self.lines.get(HISTORY, []) if line is not None]

    def tables(self, key: str) -> TableRows:
        """Returns the table that was logged last, from its artifact: an incremental one with all increments.

        Raises: KeyError if no table of that key, or no committed artifact with it, arrived.
        """
        path = self.summary[key]["artifact_path"]
        client_id = path.removeprefix(CLIENT_PATH).split("/")[0]
        artifact = next((item for item in self.artifacts if client_id in item.client_ids and item.committed), None)
        if artifact is None:
            raise KeyError(f"no committed artifact {path}")
        entries = {name: data for name, data in artifact.entries().items() if name.endswith(".table.json")}
        tables = [json.loads(entries[name]) for name in sorted(entries, key=_increment)]
        return TableRows(tables[0]["columns"], [row for table in tables for row in table["data"]])

    def stream(self, name: str, offset: int, content: Sequence[str]) -> None:
        """Stores lines of a streamed file at their offset. A new history row must have a step above the last."""
        if name == SUMMARY:
            self.summary = json.loads(content[-1])
            return
        lines = self.lines.setdefault(name, [])
        lines.extend([None] * (offset - len(lines)))
        for number, line in enumerate(content, offset):
            if number < len(lines):
                lines[number] = line  # W&B overwrites
                continue
            stored = self.history if name == HISTORY else []
            drop = bool(stored) and json.loads(line)["_step"] <= stored[-1]["_step"]
            self.dropped += drop
            lines.append(None if drop else line)

    def tail(self, name: str) -> str:
        """Returns the last line of a streamed file as W&B's API does: a JSON list of it."""
        return json.dumps([line for line in self.lines.get(name, []) if line is not None][-1:])


def _increment(name: str) -> tuple[int, ...]:
    """Orders increments, which are named "NUMBER-MILLISECONDS.KEY.table.json"; wandb names the first one "None-"."""
    numbers = name.split(".")[0].split("-")
    return tuple(int(number) for number in numbers) if all(number.isdigit() for number in numbers) else ()
