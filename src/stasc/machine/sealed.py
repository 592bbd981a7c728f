"""JSON files with a checksum, and the digests that serve as keys of the store."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stasc.machine import durable


class Damaged(Exception):
    """The error of a file that differs from what was committed."""


def write_sealed(path: Path, body: Mapping[str, Any]) -> None:
    """Writes plain data with its checksum."""
    durable.write(path, json.dumps({**body, "sha256": digest(body)}, indent=1).encode())


def read_sealed(path: Path) -> dict[str, Any]:
    """Returns what `write_sealed` wrote. Raises: Damaged if the file differs from it or cannot be read."""
    with missing_is_damage():
        data = path.read_bytes()
    try:
        body: dict[str, Any] = json.loads(data)
        if body.pop("sha256") != digest(body):
            raise ValueError("its checksum differs")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise Damaged(f"{path.name} is not what was written") from error
    return body


@contextmanager
def missing_is_damage() -> Iterator[None]:
    """Turns missing files and disk errors into Damaged; a file without permission to read it stays an OSError."""
    try:
        yield
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
        if not gone and error.errno != errno.EIO:
            raise
        raise Damaged(f"{Path(error.filename or '').name}: {error.strerror}") from error


def digest(value: object) -> str:
    """Returns the sha256 of plain data, as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def jsonl(lines: Iterable[Mapping[str, object]]) -> bytes:
    """Returns the content of a JSON Lines file."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
