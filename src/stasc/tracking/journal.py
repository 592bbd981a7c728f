"""The journal: the record of a run, one event per line, written as events happen."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stasc.machine import durable

COMPLETE = ("finished", "stopped_empty")  # statuses of a run that has done all its work
CRC = b', "crc32": "'  # separates a line from its checksum, the last field


class Journal(AbstractContextManager["Journal"]):
    """Append-only file of events, each a line of JSON with a checksum, and on disk when `write` returns.

    An existing journal is continued. A last line that a crash cut short is removed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab+", buffering=0)
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        durable.sync_folder(path.parent)

    def write(self, event: str, **fields: object) -> None:
        """Appends `{"time": ..., "event": event, **fields, "crc32": ...}`; the time is UTC.

        NaN and infinity are written as null, so that a NaN loss does not keep its event out of the record.

        Raises: ValueError for a field called time or crc32; TypeError naming a field that is not a JSON value.
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
        """Closes the file."""
        self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the events of a journal in order, each checked, without their checksums.

    A last line that a crash cut short was never acknowledged, and is skipped.

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
