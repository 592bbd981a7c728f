"""The run's folder: journal, summary, every pair and every test outcome, and their mirror in a tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stasc import fsx, tracking
from stasc.metrics import describe
from stasc.records import Iteration, Pair
from stasc.tracking import Journal, Tracker, mirrored

ENDED = ("finished", "stopped_empty")  # the statuses of a run that is complete


class RunFolder:
    """Records iterations as they come. `summary` is what summary.json holds, rewritten after every iteration.

    A run that goes on in the folder of an earlier start writes its files anew, and into the journal and to the tracker
    what they do not have yet.
    """

    def __init__(self, path: Path, summary: dict[str, Any], journal: Journal, tracker: Tracker, correct_at: float):
        self.path, self.summary = path, summary
        self._journal, self._tracker, self._correct_at = journal, tracker, correct_at
        self._began = time.perf_counter()
        events = tracking.read(path / "journal.jsonl")
        self._recorded = {event["n"] for event in events if event["event"] == "iteration"}
        self._mirrored = mirrored(path / "journal.jsonl")
        for name in ("outcomes.jsonl", "pairs.jsonl"):
            fsx.write(path / name, b"")

    def begin(self, **provenance: object) -> None:
        """Records what the run is made of, before anything is sampled."""
        self._journal.write("run_started", variant=self.summary["variant"], seed=self.summary["seed"], **provenance)
        self._write_summary()

    def stage(self, kind: str, key: str, reused: bool, **facts: object) -> None:
        """Records a stage that was computed, or was there already."""
        self._journal.write("stage", kind=kind, key=key, reused=reused, **facts)

    def iteration(
        self, iteration: Iteration[Any], training: Mapping[str, float] | None, seconds: Mapping[str, float]
    ) -> None:
        """Records an iteration: its summary, its pairs and its test outcomes."""
        now = time.perf_counter()
        entry = {
            "n": iteration.n,
            "test": describe(iteration.test, self._correct_at),
            "train": self._describe_train(iteration),
            "finetune": training,
            "seconds": {**seconds, "total": now - self._began},
        }
        self._began = now
        kept = set(map(id, iteration.kept))
        pairs = [{"n": iteration.n, **_line(pair), "kept": id(pair) in kept} for pair in iteration.pairs]
        _append(self.path / "pairs.jsonl", pairs)
        _append(self.path / "outcomes.jsonl", (self._outcome(iteration.n, pair) for pair in iteration.test))
        self.summary["iterations"].append(entry)
        if iteration.n not in self._recorded:
            self._journal.write("iteration", **entry)
        self._write_summary()
        if iteration.n not in self._mirrored and self._tracker.iteration(entry, iteration.pairs, iteration.kept):
            self._journal.write("mirrored", n=iteration.n)

    def end(self, status: str, error: str | None = None) -> None:
        """Records how the run ended."""
        self.summary["status"] = status
        try:
            self._journal.write("run_ended", status=status, error=error)
            self._write_summary()
        finally:
            self._tracker.finish(status, failed=error is not None, entries=self.summary["iterations"])

    def _describe_train(self, iteration: Iteration[Any]) -> dict[str, float] | None:
        if not iteration.pairs:
            return None
        return {**describe(iteration.pairs, self._correct_at), "kept": len(iteration.kept)}

    def _outcome(self, n: int, pair: Pair) -> dict[str, object]:
        line = _line(pair)
        return {"n": n, "seed": self.summary["seed"], "sample": line.pop("i"), **line}

    def _write_summary(self) -> None:
        fsx.write(self.path / "summary.json", json.dumps(self.summary, indent=1).encode() + b"\n")


def earlier(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What an earlier start left in a run's folder: its last `run_started` event, and its summary if it is complete.

    A journal that was changed after it was written is set aside, and the run gone through again to write a new one.
    """
    journal, started = path / "journal.jsonl", None
    if journal.exists():
        try:
            for event in tracking.read(journal):
                if event["event"] == "run_started":
                    started = event
        except ValueError as error:
            fsx.set_aside(journal, str(error))
            return started, None
    try:
        summary = json.loads((path / "summary.json").read_bytes())
        complete = summary["status"] in ENDED and all(
            (path / name).exists() for name in ("outcomes.jsonl", "model")
        )
    except (OSError, ValueError, KeyError, TypeError):
        return started, None
    return started, summary if complete else None


def _line(pair: Pair) -> dict[str, object]:
    return {**pair.names, "y1": pair.y1.text, "y2": pair.y2.text, "r1": pair.r1, "r2": pair.r2}


def _append(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    fsx.append(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
