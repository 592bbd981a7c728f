"""What a tracker is: something that follows a run as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stasc.records import Pair


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run.

    `config` is plain data, already redacted; `folder` is the run's own; `choices` are the options of config groups.
    """

    name: str
    group: str
    variant: str
    seed: int
    folder: Path
    config: dict[str, object]
    choices: Mapping[str, str]


class Tracker(Protocol):
    """Follows one run. An iteration is given as its entry in summary.json; both methods say whether it went well."""

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> bool:
        """Sends one iteration. True means that it arrived: it need not be sent again, by a continued run either."""
        ...

    def finish(self, status: str, failed: bool, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Sends the end of the run, of which `entries` are all iterations, those sent by an earlier start too."""
        ...


@dataclass(frozen=True)
class Off:
    """No tracking."""

    def start(self, info: RunInfo) -> Tracker:
        return Nothing()


class Nothing:
    """Follows nothing."""

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> bool:
        return False

    def finish(self, status: str, failed: bool, entries: Sequence[Mapping[str, Any]]) -> bool:
        return False
