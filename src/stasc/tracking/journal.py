"""A run's journal: what happened, as it happened. It is the record of the run."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stasc.machine import durable

COMPLETE = ("finished", "stopped_empty")  # how a run has ended that did all it was to do
CRC = b', "crc32": "'  # what parts a line from its checksum, which is always the last field


class Journal:
    """Append-only record of a run: one event a line, as JSON with a checksum, on disk when `write` returns.

    Opening an existing journal goes on with it. A last line that was cut short by a crash is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab+", buffering=0)
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        durable.sync_folder(path.parent)

    def write(self, event: str, **fields: object) -> None:
        """Appends `{"time": ..., "event": event, **fields, "crc32": ...}`; the time is UTC.

        A float that is not finite is written as null under its name: JSON has no NaN, and a loss that became NaN must
        not keep its event out of the record.

        Raises: ValueError for a field called time or crc32; TypeError, naming the field, for what is no JSON value.
        """
        for name in fields.keys() & {"time", "crc32"}:
            raise ValueError(f"journal event {event!r}: the field name {name!r} is the journal's own; use another")
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        plain = {name: _plain(value, f"journal event {event!r}, {name}") for name, value in fields.items()}
        body = json.dumps({"time": time, "event": event, **plain}).encode()
        line, end = body[:-1] + CRC + b'%08x"}\n' % zlib.crc32(body), self._file.seek(0, os.SEEK_END)
        try:
            with durable.naming(self._path):
                durable.put(self._file, line)
        except BaseException:  # an interrupt as well
            self._file.truncate(end)  # the next event must not follow half of this one
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the events of a journal in order, each checked, without their checksums.

    A last line without its end is what a crash leaves: it was never acknowledged, and is left out.

    Raises: ValueError at the first line that does not match its checksum, naming the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            body, _, crc = line.rpartition(CRC)
            body += b"}"
            if crc != b'%08x"}\n' % zlib.crc32(body):
                raise ValueError(
                    f"{path}, line {number}: does not match its checksum, so it was changed after it was written; "
                    f"the {number - 1} events before it are whole"
                )
            yield json.loads(body)


def mirrored(path: Path) -> frozenset[int]:
    """The iterations that an earlier start of the run sent to its tracker, as its journal has it."""
    return frozenset(event["n"] for event in read(path) if event["event"] == "mirrored")


def _plain(value: object, name: str) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{name}: {type(value).__name__} is no JSON value; convert it to text, numbers, lists or dicts")
