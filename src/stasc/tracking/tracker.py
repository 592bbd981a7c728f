"""The interface of trackers, which mirror a run elsewhere, and the tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stasc.records import Pair


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that its tracker gets: names, folder, redacted settings, and options of config groups."""

    name: str
    group: str
    variant: str
    seed: int
    folder: Path
    config: dict[str, object]
    choices: Mapping[str, str]


class Tracker(Protocol):
    """Mirrors one run. Both methods return whether everything arrived."""

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> bool:
        """Sends an iteration: its entry in summary.json and its pairs. One that arrived is never sent again."""
        ...

    def finish(self, status: str, failed: bool, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Sends the end of the run; `entries` are all its iterations, including those of earlier starts."""
        ...


@dataclass(frozen=True)
class Off:
    """The option tracking=off."""

    def start(self, info: RunInfo) -> Tracker:
        """Returns the tracker of a run."""
        return Nothing()


class Nothing:
    """A tracker that does nothing."""

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> bool:
        return False

    def finish(self, status: str, failed: bool, entries: Sequence[Mapping[str, Any]]) -> bool:
        return False
