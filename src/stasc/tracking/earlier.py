"""Finds the W&B files that earlier starts of a run wrote, and where the next start continues."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

INSPECT_S = 60


@dataclass(frozen=True)
class EarlierStarts:
    """The W&B files of earlier starts of a run, oldest first."""

    files: tuple[Path, ...]

    @property
    def id(self) -> str | None:
        """The id of the last start's W&B run, which a resumed run continues."""
        return self.files[-1].stem.removeprefix("run-") if self.files else None

    @property
    def online(self) -> bool:
        """Whether any start was online. `wandb sync` skips its file unless given --include-online."""
        return not all(map(_is_offline, self.files))

    @cached_property
    def _written(self) -> list[tuple[Path, int]]:
        """The files that hold rows, each with its last step. A start that found the server down wrote none."""
        steps = [(path, _last_step(path)) for path in self.files]
        return [(path, step) for path, step in steps if step >= 0]

    @property
    def _online_at(self) -> int:
        """The position in `_written` of the last online start, 0 if none."""
        return max((i for i, (path, _) in enumerate(self._written) if not _is_offline(path)), default=0)

    def next_step(self) -> int:
        """Returns the step after the last row that the files hold. W&B renumbers rows that a later file repeats.

        An online start sends all that its server lacks, so that offline files from before it do not count.

        Raises: subprocess.SubprocessError or ValueError if W&B's own reader fails.
        """
        steps = [step for i, (path, step) in enumerate(self._written) if i >= self._online_at or not _is_offline(path)]
        return max(steps, default=-1) + 1

    def mark_synced(self) -> None:
        """Makes `wandb sync` skip all offline files: the server has their rows."""
        _mark_synced(self.files)

    def mark_superseded(self) -> None:
        """Makes `wandb sync` skip offline files older than the last online start, which sent their rows again."""
        _mark_synced([path for path, _ in self._written[: self._online_at]])


def earlier_starts(folder: Path, run_id: str | None) -> EarlierStarts:
    """Returns the earlier starts in a run's folder that had this id; None: that of the last one."""
    files = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    name = f"run-{run_id}.wandb" if run_id else files[-1].name if files else ""
    return EarlierStarts(tuple(path for path in files if path.name == name))


def _is_offline(path: Path) -> bool:
    return path.parent.name.startswith("offline-")


def _mark_synced(files: Sequence[Path]) -> None:
    for path in filter(_is_offline, files):
        with suppress(OSError):
            path.with_name(f"{path.name}.synced").touch()


def _last_step(path: Path) -> int:
    """Returns the step of the last whole row in a file; -1 if it has none."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path.parent)]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=INSPECT_S, check=True)
    records = map(json.loads, found.stdout.splitlines())
    rows = [record["history"]["item"] for record in records if record["type"] == "history"]
    return max((int(row["_step"]) for row in rows), default=-1)
