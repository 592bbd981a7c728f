"""Durable files: after a crash, a file or folder stands whole under its final name, or not at all."""

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

SCRATCH = ".tmp-"  # begins the names of unfinished files, which a crash leaves behind and nobody reads
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_FREE = "bytes are free there"


def write(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{SCRATCH}{secrets.token_hex(4)}-{path.name}")
    try:
        with naming(path), scratch.open("wb", buffering=0) as file:
            put(file, data)
        replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)  # frees its bytes on a full disk
        raise


def append(path: Path, data: bytes) -> None:
    """Appends to a file. A crash leaves at most a part of the data, without its end."""
    with naming(path), path.open("ab", buffering=0) as file:
        put(file, data)


def put(file: BinaryIO, data: bytes) -> None:
    """Writes to an open, unbuffered file, and returns when the data is on disk."""
    while data:
        data = data[os.write(file.fileno(), data) :]  # which may write a part
    os.fsync(file.fileno())


def replace(source: Path, target: Path) -> None:
    """Renames a file or folder atomically."""
    with naming(target):
        source.replace(target)
    sync_folder(target.parent)


def quarantine(path: Path, reason: str) -> bool:
    """Renames a damaged file or folder to `<name>.corrupt-<n>`, where nothing reads it, and logs a warning.

    Returns: False if another process has done so.
    """
    names = (path.with_name(f"{path.name}.corrupt-{n}") for n in count(1))
    aside = next(name for name in names if not name.exists())
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    log.warning("%s; quarantined as %s", reason, aside.name)
    return True


def sweep(folder: Path) -> None:
    """Removes what crashes left in a folder that no other process writes to."""
    for path in folder.glob(f"{SCRATCH}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def sync_tree(folder: Path) -> None:
    """Makes a folder durable that a library wrote."""
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs writable files only
    sync_folder(folder)


def publish_modes(folder: Path) -> None:
    """Gives a folder and its files the modes that new ones get here: some libraries make them private."""
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
    """Copies a file. On file systems that can, the copy shares the blocks of the original."""
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
    """Makes the names in a folder durable. Windows cannot, and need not."""
    if os.name != "nt":
        _sync(folder, os.O_RDONLY)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the path and the free bytes to the error of a full or read-only disk.

    safetensors writes in Rust, whose error has another type and the number in its text: it becomes an OSError.
    """
    try:
        yield
    except Exception as error:
        found = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else found and int(found[1])
        if number not in _FULL or _FREE in str(error):
            raise
        raise OSError(number, f"{os.strerror(number)}; {free(path)} {_FREE}", str(path)) from error


def is_full(error: BaseException) -> bool:
    """Whether the disk, a quota or a limit of the process refused a write, so that no setting is wrong."""
    return isinstance(error, OSError) and error.errno in _FULL


def free(path: Path) -> int:
    """Returns the bytes that are free on the disk of a path, which need not exist."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _sync(path: Path, flags: int) -> None:
    with naming(path):
        descriptor = os.open(path, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
