"""Runs real commands against the fake W&B backend, and compares its runs with the run folders."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from wandb_backend import Backend
from wandb_runs import FakeRun
from zygote import Ran, Zygote

from stasc.tracking import read

SMALL = (
    *("model=tiny", "dataset.n_train=3", "dataset.n_test=3", "sampling.max_new_tokens=4", "filter=all"),
    *("finetune.truncated=keep", "finetune.batch_size=2", "iterations=3"),
    *("~reward", "+reward={_target_: parts.reward, _partial_: true, seed: '${seed}'}"),
)
RUN = "run-seed0"

PARTS = """
import os, pathlib, time, zlib

def reward(answer, references, seed):
    time.sleep(float(os.environ.get("TEST_SLEEP_S", 0)))
    if os.environ.get("TEST_FAIL_SEED") == str(seed):
        journals = [path for path in pathlib.Path().rglob("journal.jsonl") if f"-seed{seed}" in path.parent.name]
        if any('"iteration", "n": 1,' in path.read_text() for path in journals):
            raise RuntimeError("the reward failed")
    return float(zlib.crc32(answer.encode()) % 2)
"""


@dataclass(frozen=True)
class Bench:
    """A folder in which commands run, with the W&B server that they find."""

    folder: Path
    backend: Backend
    command: Zygote
    environment: pytest.MonkeyPatch

    @property
    def run_folder(self) -> Path:
        return self.folder / RUN

    @property
    def wandb_run(self) -> FakeRun:
        """The only W&B run."""
        (run,) = self.backend.runs.values()
        return run

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self.environment.setenv(name, value)

    @property
    def journal(self) -> str:
        """The run's journal so far."""
        path = self.run_folder / "journal.jsonl"
        return path.read_text() if path.exists() else ""

    def start(self, *arguments: str, at: Moment | None = None, do: Callable[[int], None] | None = None) -> Ran:
        """Runs the command; at a moment does something with its process id, by default kill it."""

        def meanwhile(pid: int) -> None:
            if at:
                self.wait(at)
                (do or kill)(pid)

        return self.command.run(self.folder, *SMALL, *arguments, f"hydra.run.dir={RUN}", meanwhile=meanwhile)

    def wait(self, moment: Moment) -> None:
        """Waits for a moment."""
        deadline = time.monotonic() + 60
        while not moment(self):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def finish(self, *arguments: str) -> Ran:
        """Runs the command to its end, which must be a success."""
        ran = self.start(*arguments)
        assert ran.returncode == 0, ran.stderr
        return ran

    def kill(self, moment: Moment, *arguments: str) -> Ran:
        """Runs the command and kills it at a moment; W&B's service ends when its parent is gone."""
        ran = self.start(*arguments, at=moment)
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        time.sleep(0.5)
        return ran

    def wandb_sync(self, told: str = "") -> str:
        """Runs the last command `wandb sync ...` that a log gives, by default that for the run's folder."""
        given = re.findall(r"`(wandb sync [^`]*)`", told) or [f"wandb sync {self.run_folder / 'wandb'}"]
        return self.python("-m", *shlex.split(given[-1]))

    def python(self, *arguments: str) -> str:
        """Runs Python, and returns what it prints."""
        command = [sys.executable, *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        ran = subprocess.run(command, cwd=self.folder, text=True, timeout=90, check=False, **pipes)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout


Moment = Callable[[Bench], bool]
MOMENTS: dict[str, Moment] = {
    "before iteration 0": lambda bench: '"run_started"' in bench.journal,
    "after iteration 0": lambda bench: '"iteration", "n": 0' in bench.journal,
    "in the training of iteration 1": lambda bench: bench.journal.count('"kind": "filter"') == 1,
    "in the training of iteration 2": lambda bench: bench.journal.count('"kind": "filter"') == 2,
    "after iteration 3": lambda bench: '"iteration", "n": 3' in bench.journal,
}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


STEP = ("train/global_step", "train/loss", "train/learning_rate", "train/grad_norm", "train/num_input_tokens_seen")
INTERNAL = ("store", "tracking", "sweep", "cache_dir", "letter", "suffix")  # settings that W&B does not show
COMPLETE = ("finished", "stopped_empty")
Row = dict[str, Any]


def stored(run: FakeRun) -> Row:
    """Returns the content of a W&B run, as far as a run's folder tells it."""
    history = run.history
    steps = [row for row in history if "train/global_step" in row]
    iterations = [row for row in history if "accuracy/initial" in row]
    tables = [row for row in history if "tables/test" in row]
    assert len(steps) + len(iterations) + len(tables) == len(history)
    assert len({row["iteration"] for row in tables}) == len(tables)
    return rounded(
        {
            **{"name": run.name, "group": run.group, "job_type": run.job_type, "tags": sorted(run.tags)},
            **{"exit_code": run.exit_code, "state": run.state, "config": run.config},
            "steps": [{name: row.get(name) for name in STEP} for row in steps],
            "iterations": [{name: row.get(name) for name in METRICS} for row in iterations],
            "numbers": [row["_step"] for row in history if row not in tables],
            "tables": {name: run.tables(f"tables/{name}").rows for name in ("test", "pairs")},
            "summary": {name: run.summary[name] for name in run.summary if name.startswith(ENDED) or name in METRICS},
        }
    )


def recorded(folder: Path) -> Row:
    """Returns what a run's folder records in the form of `stored`."""
    events = list(read(folder / "journal.jsonl"))
    started = [event for event in events if event["event"] == "run_started"][-1]
    ended = events[-1]
    assert ended["event"] == "run_ended"
    failed = ended["status"] not in COMPLETE
    entries = _last(events, "iteration")
    steps, iterations = step_rows(_last(events, "training")), iteration_rows(entries)
    numbers = [2 * n + len([one for one in steps if one["n"] <= n]) for n in range(len(entries))]
    numbers += [2 * one.pop("n") - 1 + one["train/global_step"] for one in steps]
    return rounded(
        {
            **{name: started[name] for name in ("name", "group")},
            **{"job_type": started["variant"], "tags": sorted(started["tags"])},
            **{"exit_code": int(failed), "state": "failed" if failed else "finished", "config": config(started)},
            **{"steps": steps, "iterations": iterations, "numbers": sorted(numbers), "tables": tables(folder)},
            "summary": {**iterations[-1], **end(ended, entries, iterations[-1])},
        }
    )


def rounded(value: Any) -> Any:
    """Returns a value without empty settings, which W&B does not keep; numbers are rounded, for sums of floats."""
    if isinstance(value, Mapping):
        return {name: rounded(inner) for name, inner in value.items() if inner not in (None, {})}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 9) if isinstance(value, float) else value


def _last(events: Sequence[Mapping[str, Any]], kind: str) -> list[Mapping[str, Any]]:
    """Returns the last event of each iteration, in order."""
    last = {event["n"]: event for event in events if event["event"] == kind}
    return [last[n] for n in sorted(last)]


def config(started: Mapping[str, Any]) -> Row:
    def shown(settings: Mapping[str, Any]) -> Row:
        kept = {name: value for name, value in settings.items() if name[0] != "_" and name not in INTERNAL}
        return {name: shown(value) if isinstance(value, Mapping) else value for name, value in kept.items()}

    facts = {name: started[name] for name in ("variant", "seed", "commit", "device", "versions")}
    choices = {f"choice/{name}": option for name, option in started["choices"].items()}
    return {**shown(started["config"]), **facts, **choices, "choice/baseline": "none"}


def step_rows(trainings: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Returns the rows of optimizer steps with their iteration, without their speed, which differs each time."""
    rows: list[Row] = []
    tokens = 0
    for event in trainings:
        for i, count in enumerate(event["input_tokens"]):
            tokens += count
            figures = {f"train/{name}": event[name][i] for name in ("loss", "learning_rate", "grad_norm")}
            counts = {"train/global_step": len(rows) + 1, "train/num_input_tokens_seen": tokens}
            rows.append({"n": event["n"], **counts, **figures})
    return rows


METRICS = (
    *("iteration", "accuracy/initial", "accuracy/correction", "accuracy/gain", "accuracy/over_M0_initial"),
    *("accuracy/over_M0_correction", "answers/correction_tokens", "corrections/wrong_to_right", "time/evaluation"),
    *("time/total", "samples/correction_accuracy", "filter/kept", "finetune/loss", "finetune/steps"),
)
ENDED = ("status", "error", "final/", "last/", "total/")


def iteration_rows(entries: Sequence[Mapping[str, Any]]) -> list[Row]:
    m_0 = entries[0]["test"]
    return [
        {
            "iteration": entry["n"],
            "accuracy/initial": entry["test"]["init_acc"],
            "accuracy/correction": entry["test"]["corr_acc"],
            "accuracy/gain": entry["test"]["corr_acc"] - entry["test"]["init_acc"],
            "accuracy/over_M0_initial": entry["test"]["corr_acc"] - m_0["init_acc"],
            "accuracy/over_M0_correction": entry["test"]["corr_acc"] - m_0["corr_acc"],
            "answers/correction_tokens": entry["test"]["corr_tokens"],
            "corrections/wrong_to_right": entry["test"]["wrong_right"],
            "time/evaluation": entry["seconds"]["evaluation"],
            "time/total": seconds(entry),
            "samples/correction_accuracy": (entry["train"] or {}).get("corr_acc"),
            "filter/kept": (entry["train"] or {}).get("kept"),
            "finetune/loss": (entry["finetune"] or {}).get("loss"),
            "finetune/steps": (entry["finetune"] or {}).get("steps"),
        }
        for entry in entries
    ]


def seconds(entry: Mapping[str, Any]) -> float:
    """Returns the computing time of an iteration."""
    return sum(s for name, s in entry["seconds"].items() if name not in ("total", "loading"))


def tables(folder: Path) -> dict[str, list[list[Any]]]:
    """Returns the rows of both tables; filter=all keeps every pair."""
    questions = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    references = {line["id"]: " | ".join(line["references"]) for line in questions}
    words = {0.0: "wrong", 1.0: "right"}
    rows: dict[str, list[list[Any]]] = {}
    for name, file in (("test", "outcomes.jsonl"), ("pairs", "pairs.jsonl")):
        lines = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        rows[name] = [
            [
                *(line["n"], line["question"], references[line["question_id"]], line["y1"], line["y2"]),
                *(line["r1"], line["r2"], f"{words[line['r1']]} → {words[line['r2']]}"),
                *([True, ""] if name == "pairs" else []),
            ]
            for line in lines
        ]
    return rows


def end(ended: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], last_row: Mapping[str, Any]) -> Row:
    """Returns the summary of a run's end."""
    kind = "final" if ended["status"] in COMPLETE else "last"
    names = ("initial", "correction", "gain", "over_M0_initial", "over_M0_correction")
    trained = [{**(entry["train"] or {}), **(entry["finetune"] or {})} for entry in entries]
    return {
        **{"status": ended["status"], "error": ended["error"], f"{kind}/iteration": last_row["iteration"]},
        **{f"{kind}/{name}": last_row[f"accuracy/{name}"] for name in names},
        **{f"total/{name}": sum(one.get(name, 0) for one in trained) for name in ("kept", "steps", "tokens")},
        "total/seconds": sum(map(seconds, entries)),
    }
