"""Durable writing: what these functions have done is on disk, under its final name as a whole or not at all.

Everything that a run relies on after a crash is written here, and every step that a crash can fall between is
announced to `at`, so that a test can crash at each of them.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

SCRATCH = ".tmp-"  # what names of unfinished files begin with; a crash leaves them, and they mean nothing
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_ROOM = "bytes are free there"


def at(step: str, path: Path) -> None:
    """Called before each step. Tests replace it to crash, or to fail, there."""


def write(path: Path, data: bytes) -> None:
    """Writes a file whole, or leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{SCRATCH}{secrets.token_hex(4)}-{path.name}")
    try:
        with naming(path):
            with scratch.open("wb") as file:
                put(file, data, path)
            replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)  # a full disk has no room for it
        raise


def append(path: Path, data: bytes) -> None:
    """Adds to a file's end. A crash leaves a part of it at most, without the end."""
    with naming(path), path.open("ab") as file:
        put(file, data, path)


def replace(source: Path, target: Path) -> None:
    """Renames a file or folder, atomically."""
    with naming(target):
        at("rename", target)
        source.replace(target)
        at("renamed", target)
    sync_folder(target.parent)


def set_aside(path: Path, told: str) -> bool:
    """Renames a damaged file or folder to `<name>.corrupt-<n>`, to be inspected and not read again, and says so.

    Returns: False if another process has done it.
    """
    names = (path.with_name(f"{path.name}.corrupt-{n}") for n in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    log.warning("%s; set aside as %s", told, aside.name)
    return True


def sweep(folder: Path) -> None:
    """Removes what crashes have left in a folder that nobody else is writing to."""
    for path in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_tree(folder: Path) -> None:
    """Makes what a library wrote into a folder durable."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with naming(path):
            at("sync", path)
            _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs writable files only
    sync_folder(folder)


def publish_modes(folder: Path) -> None:
    """Gives a folder and its files the modes that any new ones have here, where a library made them private."""
    probe = folder.parent / f"{SCRATCH}{secrets.token_hex(4)}"
    probe.mkdir()
    try:
        (probe / "file").touch()
        for_folders, for_files = (stat.S_IMODE(path.stat().st_mode) for path in (probe, probe / "file"))
    finally:
        shutil.rmtree(probe)
    for path in (folder, *folder.rglob("*")):
        mode = for_folders if path.is_dir() else for_files
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def clone(source: Path, target: Path) -> None:
    """Copies a file's content into a new file, which shares its blocks with the old one where the disk can do that."""
    with naming(target), source.open("rb") as old, target.open("wb") as new:
        try:
            while os.copy_file_range(old.fileno(), new.fileno(), 2**30):
                pass
            if os.fstat(new.fileno()).st_size != os.fstat(old.fileno()).st_size:  # some file systems copy nothing
                raise OSError(errno.EIO, "copied in part")
        except (AttributeError, OSError) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            old.seek(0)
            new.seek(0)
            shutil.copyfileobj(old, new, 2**20)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. Windows can't, and needn't."""
    with naming(folder):
        at("sync", folder)
        if os.name != "nt":
            _sync(folder, os.O_RDONLY)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the disk names the path, and says how much room there is.

    That of a library written in Rust becomes an OSError: it is of another type, and has the number in its text.
    """
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number(error)
        if number not in _FULL or _ROOM in str(error):
            raise
        raise OSError(number, f"{os.strerror(number)}; {free(path)} {_ROOM}", str(path)) from error


def is_full(error: BaseException) -> bool:
    """Whether the disk, a quota or a limit of the process refused a write: no setting is wrong."""
    return isinstance(error, OSError) and error.errno in _FULL


def free(path: Path) -> int:
    """Bytes free where `path` is, or will be."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def _number(error: Exception) -> int | None:
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def put(file: BinaryIO, data: bytes, path: Path) -> None:
    """Writes to an open file, which is `path`, and waits until that is on disk."""
    at("write", path)
    half = len(data) // 2
    _write_all(file, data[:half])
    at("half-written", path)
    _write_all(file, data[half:])
    at("sync", path)
    os.fsync(file.fileno())


def _write_all(file: BinaryIO, data: bytes) -> None:
    """An unbuffered file may take a part at a time."""
    while data:
        data = data[file.write(data) :]
    file.flush()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
