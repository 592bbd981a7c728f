"""The folder of a run: its journal, summary, training pairs and test outcomes, mirrored to a tracker."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stasc import tracking
from stasc.choices.filter import Option
from stasc.machine import durable
from stasc.machine.sealed import file_sha256, jsonl
from stasc.records import REASONS, Iteration, OptimizerStep, Pair, Split
from stasc.runs import vote
from stasc.runs.advice import not_kept
from stasc.runs.metrics import describe
from stasc.tasks.rewards import attribute
from stasc.tracking import COMPLETE, Journal, Tracker

log = logging.getLogger(__name__)

SCHEMA = 2  # schema version of summary.json and the files beside it
READABLE = (1, SCHEMA)  # schema 1 had the id of a question under `question`, without its text or the reason of drops
QUESTION_CHARACTERS = 2_000  # limit for question texts in pairs and outcomes; questions.jsonl has them whole
RESULTS = ("outcomes.jsonl", "pairs.jsonl")
QUESTIONS = "questions.jsonl"  # the questions by id


class RunFolder:
    """Records the iterations of a run. `summary` is the content of summary.json, rewritten after every iteration.

    A resumed run writes its files anew. The journal gets only what it does not have yet, the tracker everything again.
    """

    def __init__(
        self,
        path: Path,
        summary: dict[str, Any],
        journal: Journal,
        tracker: Tracker,
        correct_at: float,
        reward: object = None,
        keep: Option | None = None,
    ) -> None:
        self.path, self.summary = path, summary
        self._reward, self._key, self._keep = reward, vote.key_of(reward), keep
        self._journal, self._tracker, self._correct_at = journal, tracker, correct_at
        self._began = time.perf_counter()
        events = list(tracking.read(path / "journal.jsonl"))
        self._recorded = _entries(events)
        self._trained = {event["n"]: _timeless(event) for event in events if event["event"] == "training"}
        self._steps: dict[int, list[OptimizerStep]] = {}  # by iteration
        durable.sweep(path)
        for name in RESULTS:
            durable.write(path / name, b"")

    def begin(self, splits: Iterable[Split], **provenance: object) -> None:
        """Records the questions and the provenance of the run, before anything is sampled."""
        lines = (
            {"split": split.name, "id": x.id, "question": x.text, "references": x.references}
            for split in splits
            for x in split.questions
        )
        durable.write(self.path / QUESTIONS, jsonl(lines))
        self._journal.write("run_started", variant=self.summary["variant"], seed=self.summary["seed"], **provenance)
        self._write_summary()

    def stage(self, kind: str, key: str, reused: bool, **facts: object) -> None:
        """Records a stage that was computed or, if `reused`, a cache hit."""
        self._journal.write("stage", kind=kind, key=key, reused=reused, **facts)

    def step(self, n: int, number: int, step: OptimizerStep) -> None:
        """Records an optimizer step of iteration n; `number` counts from 1. Repeated steps are ignored."""
        steps = self._steps.setdefault(n, [])
        if number > len(steps):
            steps.append(step)
            self._tracker.step(n, step)

    def iteration(
        self,
        iteration: Iteration[Any],
        training: Mapping[str, float] | None,
        seconds: Mapping[str, float],
        reused: int = 0,
    ) -> None:
        """Records an iteration: its summary, its pairs and its test outcomes.

        Args:
            seconds: by kind of stage, as measured when it was computed, by this run or another.
            reused: the number of stages that were cache hits.
        """
        now = time.perf_counter()
        votes = vote.describe(iteration.test, self._correct_at, self._key)
        entry = {
            "n": iteration.n,
            "test": self._describe(iteration.test) | votes,
            "train": self._describe_train(iteration),
            "finetune": training,
            "seconds": {**seconds, "total": now - self._began},
            "reused": reused,
        }
        self._began = now
        pairs, outcomes = list(self._pairs(iteration)), list(self._outcomes(iteration, votes.get("vote_k")))
        durable.append(self.path / "pairs.jsonl", jsonl(pairs))
        durable.append(self.path / "outcomes.jsonl", jsonl(outcomes))
        self._record_training(iteration.n)
        self.summary["iterations"].append(entry)
        if self._recorded.get(iteration.n) != _timeless(entry):
            self._journal.write("iteration", **entry)
            if iteration.n in self._recorded:  # a tracker cannot take back what it was sent
                log.warning(
                    "iteration %d differs from its record of an earlier start, which W&B may hold; when the run has "
                    "ended: python -m stasc.tracking sync %s",
                    iteration.n,
                    self.path,
                )
        self._write_summary()
        self._tracker.iteration(entry, pairs, outcomes)

    def end(self, status: str, error: str | None = None) -> None:
        """Records how the run ended. A complete run is recorded after its upload, so that a kill in it resumes."""
        self.summary["status"] = status
        if status in COMPLETE:
            files = _checksums(self.path)
            try:
                self._tracker.finish(status, error)
            finally:  # also if a signal ends the upload
                self._record_end(status, error, files)
            return
        try:
            for n in self._steps:
                self._record_training(n)  # of an iteration that did not end
            self._record_end(status, error, None)
        finally:
            self._tracker.finish(status, error)

    def _record_end(self, status: str, error: str | None, files: Mapping[str, str] | None) -> None:
        self._journal.write("run_ended", status=status, error=error, files=files)
        self._write_summary()

    def _record_training(self, n: int) -> None:
        """Records the optimizer steps of an iteration as columns, unless an earlier start recorded the same."""
        if steps := self._steps.get(n):
            rows = [asdict(step) for step in steps]
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            if self._trained.get(n) != _timeless({"n": n, **columns}):
                self._journal.write("training", n=n, **columns)
                self._trained[n] = _timeless({"n": n, **columns})

    def _describe(self, pairs: Sequence[Pair]) -> dict[str, float]:
        return describe(pairs, self._correct_at, attribute(self._reward, "unmarked"))

    def _describe_train(self, iteration: Iteration[Any]) -> dict[str, float] | None:
        if not iteration.pairs:
            return None
        reasons = [reason for _, reason in iteration.left_out]
        left_out = {f"left_out_{reason}": reasons.count(reason) for reason in REASONS}
        return {**self._describe(iteration.pairs), "kept": len(iteration.kept), **left_out}

    def _pairs(self, iteration: Iteration[Any]) -> Iterator[dict[str, object]]:
        """Yields a line for each training pair, with the reason if it is not trained on."""
        kept = set(map(id, iteration.kept))
        left_out = {id(pair): f"{reason}: {REASONS[reason]}" for pair, reason in iteration.left_out}
        for pair in iteration.pairs:
            dropped = None
            if id(pair) not in kept:
                dropped = left_out.get(id(pair)) or not_kept(self._keep, pair.r1, pair.r2)
            yield {"n": iteration.n, **_line(pair), "kept": id(pair) in kept, "dropped": dropped}

    def _outcomes(self, iteration: Iteration[Any], k: float | None) -> Iterator[dict[str, object]]:
        """Yields a line for each test pair, with the rewards of the majority votes of its initial answers."""
        votes: list[dict[str, float]] = [{} for _ in iteration.test]
        if k is not None and self._key is not None:
            some, every = vote.voted(iteration.test, int(k), self._key), vote.voted_by_all(iteration.test, self._key)
            votes = [{"vote": one, "vote_all": other} for one, other in zip(some, every, strict=True)]
        for pair, vote_ in zip(iteration.test, votes, strict=True):
            line = _line(pair)
            yield {"n": iteration.n, "seed": self.summary["seed"], "sample": line.pop("i"), **line, **vote_}

    def _write_summary(self) -> None:
        durable.write(self.path / "summary.json", json.dumps(self.summary, indent=1).encode() + b"\n")


@dataclass(frozen=True)
class Earlier:
    """The content of a run's folder from an earlier start.

    `key` is the run's, `started` its last run_started event, and `summary` is None unless the run is complete.
    """

    key: str | None
    started: Mapping[str, Any] | None
    summary: dict[str, Any] | None


def earlier(path: Path) -> Earlier:
    """Reads a run's folder. Quarantines files that were changed after they were written: resuming writes them anew.

    Raises: ValueError if another version of stasc wrote the folder.
    """
    journal, started, ended = path / "journal.jsonl", None, None
    summary = _read_summary(path / "summary.json")
    key: str | None = summary["key"] if summary else None
    if not journal.exists():
        return Earlier(key, None, None)
    try:
        events = list(tracking.read(journal))
    except ValueError as error:
        durable.quarantine(journal, str(error))
        return Earlier(key, None, None)
    for event in events:
        if event["event"] == "run_started":
            started, ended, key = event, None, event.get("key", "")  # the first versions recorded no key
        elif event["event"] == "run_ended":
            ended = event
    if not summary or not ended or {summary["status"], ended["status"]}.difference(COMPLETE):
        return Earlier(key, started, None)
    if not _whole(path, ended.get("files") or {}):
        return Earlier(key, started, None)
    if [_timeless(entry) for entry in summary["iterations"]] != list(_entries(events).values()):
        durable.quarantine(path / "summary.json", f"{path}/summary.json does not match the journal")
        return Earlier(key, started, None)
    return Earlier(key, started, summary)


def _entries(events: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """Returns the last event of each iteration in a journal, without its times."""
    last = {event["n"]: event for event in events if event["event"] == "iteration"}
    return {n: _timeless(last[n]) for n in sorted(last)}


def _timeless(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("time", "event", "seconds", "reused")}


def _read_summary(path: Path) -> dict[str, Any] | None:
    """Returns a summary; None if it is missing or damaged. Raises: ValueError if another version of stasc wrote it."""
    try:
        summary: dict[str, Any] = json.loads(path.read_bytes())
        schema = summary["schema"], summary["key"], summary["status"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        durable.quarantine(path, f"{path} is damaged ({error!r})")
        return None
    if schema[0] not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise ValueError(
            f"{path} has schema {schema[0]}, and this version of stasc reads {known}: choose another sweep.name or "
            "hydra.run.dir"
        )
    return summary


def _whole(path: Path, files: Mapping[str, str]) -> bool:
    """Whether the results of a run are complete and match the checksums `files`; earlier releases recorded none."""
    damaged = [name for name, sha256 in files.items() if (path / name).exists() and file_sha256(path / name) != sha256]
    for name in {name.partition("/")[0] for name in damaged}:  # the whole model, if one of its files
        durable.quarantine(path / name, f"{path / name} does not match its checksums, so the run is resumed")
    return not damaged and all((path / name).exists() for name in {"outcomes.jsonl", "model", *files})


def _checksums(path: Path) -> dict[str, str]:
    """Returns the sha256 of the result files but summary.json, which is not final yet."""
    files = [path / name for name in RESULTS] + sorted(file for file in (path / "model").rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file_sha256(file) for file in files}


def _line(pair: Pair) -> dict[str, object]:
    return {
        "question_id": pair.question.id,
        "question": _shortened(pair.question.text),
        **{name: number for name, number in pair.names.items() if name != "question"},
        **{"y1": pair.y1.text, "y2": pair.y2.text, "r1": pair.r1, "r2": pair.r2},
    }


def _shortened(text: str) -> str:
    """Returns the text, without its middle if it is long: its beginning and end matter more."""
    half = QUESTION_CHARACTERS // 2
    return text if len(text) <= QUESTION_CHARACTERS else f"{text[:half]} […] {text[-half:]}"
