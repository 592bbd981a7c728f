"""Formats sizes, durations and counts for people."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Returns a size such as `1.5 GiB`."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def duration_text(seconds: float) -> str:
    """Returns a duration such as `25 s`, `12 min` or `3.4 h`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun: `1 answer`, `2 answers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
