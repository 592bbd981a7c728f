"""Reads a run from its folder, to send it to W&B after the fact."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc.records import Answer, Pair, Question
from stasc.settings.names import chosen_options
from stasc.tracking.journal import COMPLETE, read
from stasc.tracking.tracker import RunInfo, Tracker

NEEDED = ("name", "group", "variant", "seed", "config")  # fields of a run_started event


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder records it; `pairs` are by iteration, each with whether it was kept."""

    info: RunInfo
    tracking: Mapping[str, Any]
    status: str
    entries: Sequence[Mapping[str, Any]]
    pairs: Mapping[int, Sequence[tuple[Pair, bool]]]

    def send(self, tracker: Tracker) -> bool:
        """Sends the whole run to a tracker. Returns whether all of it arrived."""
        arrived = True
        for entry in self.entries:
            pairs = self.pairs.get(entry["n"], ())
            kept = [pair for pair, was_kept in pairs if was_kept]
            arrived &= tracker.iteration(entry, [pair for pair, _ in pairs], kept)
        return tracker.finish(self.status, self.status not in COMPLETE, self.entries) and arrived


def load(folder: Path) -> RecordedRun:
    """Returns the run in a folder. A resumed run may record an event twice; the last one counts.

    Raises: ValueError that names file and line; OSError if there is no journal.
    """
    path = folder / "journal.jsonl"
    started: dict[str, Any] | None = None
    status, entries = "running", {}
    for number, event in enumerate(read(path), 1):
        if event["event"] == "run_started":
            started, status = event, "running"
            if missing := [name for name in NEEDED if name not in event]:
                raise ValueError(f"{path}, line {number}: run_started has no {missing[0]}; an older version wrote it")
        elif event["event"] == "iteration":
            entries[event["n"]] = {name: value for name, value in event.items() if name not in ("time", "event")}
        elif event["event"] == "run_ended":
            status = event["status"]
    if started is None:
        raise ValueError(f"{path}: no run has started in this folder")
    # W&B gets a folder of its own, so that the run, if resumed, continues its own W&B run and not this one.
    choices = started.get("choices") or chosen_options(started["config"], {})  # early versions did not record choices
    info = RunInfo(**{name: started[name] for name in NEEDED}, folder=folder / "sync", choices=choices)
    tracking = started["config"].get("tracking", {})
    return RecordedRun(info, tracking, status, [entries[n] for n in sorted(entries)], _pairs(folder / "pairs.jsonl"))


def _pairs(path: Path) -> dict[int, list[tuple[Pair, bool]]]:
    if not path.exists():
        return {}
    found = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # a crash cut it short
                break
            try:
                given = json.loads(line)
                pair = _pair(given)
                found[given["n"], pair.question.id, pair.i, pair.seen, pair.k] = pair, bool(given["kept"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a pair ({type(error).__name__}: {error})") from error
    pairs: dict[int, list[tuple[Pair, bool]]] = {}
    for (n, *_), pair_and_kept in found.items():
        pairs.setdefault(n, []).append(pair_and_kept)
    return pairs


def _pair(given: Mapping[str, Any]) -> Pair:
    # In schema 1, `question` is the id, and the text is not recorded.
    question = Question(given.get("question_id", given["question"]), given["question"], ())
    y1, y2 = Answer(given["y1"], 0), Answer(given["y2"], 0)
    return Pair(question, given["i"], given["seen"], given["k"], y1, y2, given["r1"], given["r2"])
