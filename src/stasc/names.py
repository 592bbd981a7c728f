"""Names that become folders. One that could lead elsewhere, or that some file system would not take, is refused."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(setting: str, value: object) -> str:
    """`value` as text. Raises: ValueError naming the setting unless it may be part of a path."""
    text = str(value)
    if value is None or not _NAME.fullmatch(text):
        shown = "null" if value is None else ascii(text)
        raise ValueError(
            f"{setting}={shown if len(shown) <= 80 else shown[:80] + '...'}: expected a name of at most 64 letters, "
            "digits, dots, hyphens and underscores, the first of which is a letter or a digit"
        )
    return text


def check_inside(folder: Path, root: Path) -> None:
    """Checks that `folder` lies in `root` once symbolic links are followed. Raises: ValueError if not."""
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(
            f"{folder} leads to {folder.resolve()}, which is not in {root.resolve()}: remove the symbolic link, "
            "or set hydra.sweep.dir to where the sweep is meant to be"
        )
