"""Numbers as people read them."""

from __future__ import annotations


def size_text(size: int) -> str:
    """Bytes in words."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def counted(count: int, noun: str) -> str:
    """`1 answer`, `2 answers`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
