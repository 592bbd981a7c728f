"""The interface of trackers, which mirror a run elsewhere, and the tracker that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stasc.records import OptimizerStep


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that its tracker gets.

    `group` is the sweep's name, None for a single run. `config` are the settings without secrets, `choices` the options
    of config groups, `references` the right answers by question id, and `versions` those of libraries.
    """

    name: str
    group: str | None
    variant: str
    seed: int
    folder: Path
    config: Mapping[str, Any]
    choices: Mapping[str, str]
    tags: Sequence[str]
    references: Mapping[str, Sequence[str]]
    correct_at: float
    commit: str | None
    device: str
    versions: Mapping[str, str]


class Tracker(Protocol):
    """Mirrors one run. A resumed run gives it all steps and iterations again, in order; it sends the missing ones."""

    def step(self, n: int, step: OptimizerStep) -> None:
        """Sends an optimizer step of iteration n."""
        ...

    def iteration(
        self, entry: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]]
    ) -> None:
        """Sends an iteration: its entry in summary.json, and its lines in pairs.jsonl and outcomes.jsonl."""
        ...

    def finish(self, status: str, error: str | None) -> bool:
        """Sends the end of the run. Returns whether all of it arrived, on the server or in local files."""
        ...


@dataclass(frozen=True)
class Off:
    """The option tracking=off."""

    def start(self, info: RunInfo) -> Tracker:
        """Returns the tracker of a run."""
        return Nothing()


class Nothing:
    """A tracker that does nothing."""

    def step(self, n: int, step: OptimizerStep) -> None:
        pass

    def iteration(
        self, entry: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]]
    ) -> None:
        pass

    def finish(self, status: str, error: str | None) -> bool:
        return False
