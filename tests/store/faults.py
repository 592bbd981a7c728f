"""Faults between the steps of durable writing: replaces its system calls by ones that announce each step."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

At = Callable[[str, Path], None]  # called with each step, and with the path that it changes


def announce(patch: pytest.MonkeyPatch, at: At) -> None:
    """Calls `at` before each write, sync and rename, halfway through each write, and after each rename."""
    write, fsync, replace = os.write, os.fsync, Path.replace
    halfway: set[int] = set()

    def half(descriptor: int, data: bytes) -> int:
        """Writes one half, and when it is called again the other, as the system may too."""
        other = descriptor in halfway
        halfway.discard(descriptor)
        at("half-written" if other else "write", _path(descriptor))
        if other or len(data) < 2:
            return write(descriptor, data)
        halfway.add(descriptor)
        return write(descriptor, data[: len(data) // 2])

    def sync(descriptor: int) -> None:
        at("sync", _path(descriptor))
        fsync(descriptor)

    def rename(source: Path, target: Path) -> Path:
        at("rename", Path(target))
        renamed = replace(source, target)
        at("renamed", Path(target))
        return renamed

    patch.setattr(os, "write", half)
    patch.setattr(os, "fsync", sync)
    patch.setattr(Path, "replace", rename)


def _path(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()
