"""A run that is told of, a W&B that is played, and what a real one has on disk."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from stasc.records import Answer, OptimizerStep, Pair, Question
from stasc.tracking import Journal, RunInfo, Wandb

CANARY = "canary-7c1f9e"


def settings(**changed: Any) -> Wandb:
    given = {"project": "stasc", "entity": None, "group": None, "name": None, "job_type": None}
    given |= {"mode": "auto", "tags": ["a tag"], "table_rows": 4}
    return Wandb(**(given | changed))


def info_of(folder: Path, **changed: Any) -> RunInfo:
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "name": "EIE-tiny-seed3",
        "group": "sweep",
        "variant": "EIE",
        "seed": 3,
        "folder": folder,
        "config": {"pairing": "own"},
        "choices": {"init": "evolving", "model": "tiny"},
        "tags": ["tiny", "questions"],
        "references": {"q1": ("Lima",)},
        "correct_at": 1.0,
        "commit": "0123abc",
        "device": "cpu",
        "versions": {"python": "3.11.0"},
    }
    return RunInfo(**(given | changed))


def pairs_of(count: int) -> list[Pair]:
    question = Question("q1", "Capital of Peru?", ("Lima",))
    return [Pair(question, 0, 0, k, Answer("Quito", 2), Answer(f"Lima {k}", 2), 0.0, 1.0) for k in range(count)]


def lines_of(count: int, kept: Collection[int] = (), n: int = 1) -> list[dict[str, Any]]:
    """Returns lines of pairs.jsonl, of which those at the positions `kept` were trained on."""
    return [
        {
            **{"n": n, "question_id": "q1", "question": "Capital of Peru?", "y1": "Quito", "y2": f"Lima {k}"},
            **{"r1": 0.0, "r2": 1.0, "kept": k in kept, "dropped": None if k in kept else "full"},
        }
        for k in range(count)
    ]


def outcomes_of(questions: Sequence[int], n: int = 1, samples: int = 1) -> list[dict[str, Any]]:
    """Returns lines of outcomes.jsonl for questions given by number."""
    return [
        {
            **{"n": n, "seed": 3, "sample": i, "question_id": f"q{q}", "question": f"Question {q}?"},
            **{"y1": f"first {i}", "y2": f"second {i}", "r1": 1.0, "r2": 0.5},
        }
        for q in questions
        for i in range(samples)
    ]


def summary_of(n: int, corr_acc: float) -> dict[str, Any]:
    test = {"questions": 4, "init_acc": 0.5, "corr_acc": corr_acc}
    train = {**test, "pairs": 8, "kept": 2} if n else None
    finetune = {"loss": 0.25, "steps": 1} if n else None
    seconds = {"initial": 1.0, "evaluation": 0.5, "loading": 2.0, "total": 9.0}
    return {"n": n, "test": test, "train": train, "finetune": finetune, "seconds": seconds, "reused": 0}


def step_of(loss: float | None = 2.0, **changed: Any) -> OptimizerStep:
    given: dict[str, Any] = {"learning_rate": 1e-4, "grad_norm": 0.5, "tokens": 30, "input_tokens": 100}
    return OptimizerStep(**{"loss": loss, **given, "epoch": 0.5, "seconds": 4.0, **changed})


def told(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What the module logs. W&B's own log goes to the run's folder, though pytest catches it here."""
    records = [record for record in caplog.records if record.name == "stasc.tracking"]
    return [record.getMessage() for record in records if record.levelno >= level]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return told(caplog, logging.WARNING)


class FakeSummary(dict[str, Any]):
    """A run's summary, which fails and hangs as its W&B does."""

    def __init__(self, call: Callable[..., None]) -> None:
        super().__init__()
        self._call = call

    def update(self, given: dict[str, Any]) -> None:  # type: ignore[override]
        self._call(given)
        super().update(given)


class FakeWandb(types.ModuleType):
    """A fake of the package wandb and of its run: records all calls, and fails or hangs where a test asks for it.

    `starting_step` is the first step that the server lacks.
    """

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # others ask whether there is a wandb
        self.mode, self.logged_in, self.calls = "online", True, []  # type: ignore[var-annotated]
        self.fail: dict[str, Exception] = {}
        self.hangs = ""  # the call that does not return
        self.released = threading.Event()
        self.url = "https://wandb.example/run"
        self.base_url = "http://127.0.0.1:9"  # refuses connections
        self.starting_step = 0
        self.summary = FakeSummary(self._call("summary"))
        for name in ("define_metric", "finish", "teardown"):
            setattr(self, name, self._call(name))

    def log(self, row: dict[str, Any], step: int, commit: bool) -> None:
        name = "log tables" if any(key.startswith("tables/") for key in row) else "log"
        self._call(name)(row, step=step, commit=commit)

    def _call(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            self.calls.append((name, args, kwargs))
            self._hang(name)
            if name in self.fail:
                raise self.fail[name]

        return call

    def _hang(self, name: str) -> None:
        if name == self.hangs:
            self.released.wait()

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def Table(self, columns: list[str], data: list[list[Any]]) -> dict[str, Any]:
        return {"columns": columns, "data": data}

    def setup(self, given: Mapping[str, Any] | None = None) -> Any:
        self.mode = (given or {}).get("mode", self.mode)
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode, base_url=self.base_url))

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify
        return self.logged_in

    def init(self, **given: Any) -> FakeWandb:
        self.calls.append(("init", (), given))
        self._hang("init")
        self.dir = str(Path(given["dir"]) / "wandb" / "offline-run-1" / "files")
        self.offline = given["mode"] == "offline"
        if f"init {given['mode']}" in self.fail:
            raise self.fail[f"init {given['mode']}"]
        return self

    def modes(self) -> list[str]:
        return [given["mode"] for name, _, given in self.calls if name == "init"]

    def rows(self, x: str = "iteration") -> list[dict[str, Any]]:
        """Returns the rows of metrics over `x`, without tables."""
        return [args[0] for name, args, _ in self.calls if name == "log" and x in args[0]]

    def steps(self, name: str = "log") -> list[int]:
        """Returns the numbers of the rows of metrics, or with name="log tables" of tables."""
        return [kwargs["step"] for called, _, kwargs in self.calls if called == name]

    def tables(self, key: str) -> list[list[list[Any]]]:
        """Returns the data of each logged table."""
        rows = [args[0] for name, args, _ in self.calls if name == "log tables"]
        return [row[f"tables/{key}"]["data"] for row in rows if f"tables/{key}" in row]

    def charts(self) -> dict[str, bool]:
        """Returns whether each metric ends up with a chart."""
        defined = [(args[0], kwargs) for name, args, kwargs in self.calls if name == "define_metric"]
        return {name: not given.get("hidden") for name, given in defined if not name.startswith("tables/")}


def records_of(run: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in a run's file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return [json.loads(line) for line in found.stdout.splitlines()]


def help_of(module: str, *arguments: str, without: set[str]) -> str:
    """What `python -m MODULE ARGUMENTS --help` prints; it must not import any of the packages `without`."""
    code = (
        f"import sys, runpy; sys.argv[1:] = {[*arguments, '--help']!r}\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"sys.exit(bool({without!r} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def record(folder: Path, config: dict[str, Any], choices: dict[str, str], status: str = "finished") -> None:
    """Writes the journal of a run that has ended."""
    folder.mkdir(parents=True)
    with Journal(folder / "journal.jsonl") as journal:
        journal.write("run_started", config=config, choices=choices)
        journal.write("run_ended", status=status)


def only(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]
