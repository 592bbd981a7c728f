"""The run's folder: journal, summary, every pair and every test outcome, and their mirror in a tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stasc.metrics import describe
from stasc.records import Iteration, Pair
from stasc.tracking import Journal, Tracker, mirrored


class RunFolder:
    """Records iterations as they come. `summary` is what summary.json holds, rewritten after every iteration."""

    def __init__(self, path: Path, summary: dict[str, Any], journal: Journal, tracker: Tracker, correct_at: float):
        self.path, self.summary = path, summary
        self._journal, self._tracker, self._correct_at = journal, tracker, correct_at
        self._mirrored = mirrored(path / "journal.jsonl")
        self._began = time.perf_counter()
        for name in ("outcomes.jsonl", "pairs.jsonl"):
            (path / name).write_text("")

    def begin(self, **provenance: object) -> None:
        """Records what the run is made of, before anything is sampled."""
        self._journal.write("run_started", variant=self.summary["variant"], seed=self.summary["seed"], **provenance)
        self._write_summary()

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
        _append(
            self.path / "pairs.jsonl",
            ({"n": iteration.n, **_line(pair), "kept": id(pair) in kept} for pair in iteration.pairs),
        )
        _append(self.path / "outcomes.jsonl", (self._outcome(iteration.n, pair) for pair in iteration.test))
        self.summary["iterations"].append(entry)
        self._journal.write("iteration", **entry)
        self._write_summary()
        if iteration.n not in self._mirrored and self._tracker.iteration(entry, iteration.pairs, iteration.kept):
            self._journal.write("mirrored", n=iteration.n)

    def end(self, status: str, error: str | None = None) -> None:
        """Records how the run ended."""
        self.summary["status"] = status
        self._journal.write("run_ended", status=status, error=error)
        self._write_summary()
        self._tracker.finish(status, failed=error is not None, entries=self.summary["iterations"])

    def _describe_train(self, iteration: Iteration[Any]) -> dict[str, float] | None:
        if not iteration.pairs:
            return None
        return {**describe(iteration.pairs, self._correct_at), "kept": len(iteration.kept)}

    def _outcome(self, n: int, pair: Pair) -> dict[str, object]:
        line = _line(pair)
        return {"n": n, "seed": self.summary["seed"], "sample": line.pop("i"), **line}

    def _write_summary(self) -> None:
        scratch = self.path / ".summary.json"
        scratch.write_text(json.dumps(self.summary, indent=1) + "\n", encoding="utf-8")
        scratch.replace(self.path / "summary.json")


def _line(pair: Pair) -> dict[str, object]:
    return {
        "question": pair.question.id,
        "i": pair.i,
        "seen": pair.seen,
        "k": pair.k,
        "y1": pair.y1.text,
        "y2": pair.y2.text,
        "r1": pair.r1,
        "r2": pair.r2,
    }


def _append(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
