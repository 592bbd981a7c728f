"""Content digests of model folders: folders with the same files are the same model, whatever their paths."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from stasc.machine import durable
from stasc.machine.sealed import Damaged, digest, file_sha256, read_sealed, write_sealed

_DECIDING = (".safetensors", ".json", ".jinja", ".txt", ".model")  # weights, configuration, tokenizer, template


def folder_digest(folder: Path, cache: Path) -> str:
    """Returns the sha256 over the names and contents of the files that make up a model.

    Hashing gigabytes takes seconds, so the file `cache` keeps digests by path, size and times of change.
    """
    before = _read(cache)
    known, digests = dict(before), {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _DECIDING and path.is_file():
            stat = path.stat()
            state = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            if state not in known:
                known[state] = file_sha256(path)
            digests[path.name] = known[state]
    if known != before:
        with suppress(OSError):  # a digest that is not cached is computed again
            write_sealed(cache, known)
    return digest(digests)


def _read(cache: Path) -> dict[str, str]:
    if not cache.exists():
        return {}
    try:
        return read_sealed(cache)
    except Damaged as damage:
        durable.set_aside(cache, f"store: {damage}")
        return {}
