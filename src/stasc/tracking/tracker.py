"""What a tracker is: something that follows a run as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stasc.records import Pair


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run: `config` is plain data, already redacted; `folder` is the run's own."""

    name: str
    group: str
    variant: str
    seed: int
    folder: Path
    config: dict[str, object]


class Tracker(Protocol):
    """Follows one run. `summary` is an iteration's entry of summary.json."""

    def iteration(self, summary: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> None: ...

    def finish(self, status: str, failed: bool) -> None: ...


@dataclass(frozen=True)
class Off:
    """No tracking."""

    def start(self, info: RunInfo) -> Tracker:
        return Nothing()


class Nothing:
    """Follows nothing."""

    def iteration(self, summary: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> None:
        pass

    def finish(self, status: str, failed: bool) -> None:
        pass
