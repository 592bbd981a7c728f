"""A run that is stopped anywhere, and started again, ends with the same bits."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from fake_lm import fake_experiment, run_fake, use_fakes
from faults import announce
from test_store import batches, spy

from stasc.machine import durable
from stasc.machine.signals import Stopped
from stasc.runs.experiment import Experiment
from stasc.store.artifacts import KINDS, Store
from stasc.tracking import read

CRASHED = 9


class Point:
    """Counts the steps of durable writing, and does something at one of them."""

    def __init__(self, n: int = 0) -> None:
        self.n, self.count = n, 0

    def __call__(self, step: str, path: Path) -> None:
        self.count += 1
        if self.count == self.n:
            self.act(path)

    def act(self, path: Path) -> None:
        os._exit(CRASHED)


def crashes(experiment: Experiment, folder: Path, n: int) -> bool:
    """Runs in a process of its own that dies at step n. Returns: whether it got there."""
    child = os.fork()
    if not child:
        point = Point(n)
        announce(pytest.MonkeyPatch(), point)
        try:
            run_fake(experiment, folder)
        finally:
            os._exit(0 if point.count < n else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == CRASHED


def everything_committed_is_whole(store: Path) -> bool:
    names = {
        path.name for kind in KINDS for path in (store / kind).glob("*") if not path.name.startswith(durable.SCRATCH)
    }
    found = [artifact for kind in KINDS for artifact in Store(store, {}).every(kind)]
    for artifact in found:
        artifact.verify()
    return {artifact.key for artifact in found} == names


@pytest.mark.slow
def test_a_crash_at_any_step_of_writing_changes_no_result(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Every step once; at every fifth, the run that goes on crashes too."""
    use_fakes(monkeypatch, folder / "base")
    counter = folder / "counter"
    spy(monkeypatch, counter)
    experiment = fake_experiment()
    with monkeypatch.context() as patch:
        point = Point()
        announce(patch, point)
        expected = run_fake(experiment, folder / "whole" / "run")
    once = batches(counter)
    assert set(expected) == {"summary", "outcomes.jsonl", "pairs.jsonl", "model/model.safetensors"}
    assert point.count > 300

    began = time.perf_counter()
    for n in range(1, point.count + 1):
        here = folder / str(n)
        counter.unlink()
        assert crashes(experiment, here / "run", n), n
        assert everything_committed_is_whole(here / "store"), n
        starts = 2
        if n % 5 == 0:
            starts += crashes(experiment, here / "run", 1 + n // 2)
        assert run_fake(experiment, here / "run") == expected, n
        assert batches(counter) <= once + starts - 1, "lost is a batch at most, each time"
        shutil.rmtree(here)
    print(f"{point.count} crash points, {time.perf_counter() - began:.0f} s")


@pytest.mark.slow
def test_a_signal_at_any_step_of_writing_changes_no_result(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """It is raised where it comes, so that what the run does on its way out happens too."""
    use_fakes(monkeypatch, folder / "base")
    experiment = fake_experiment("iterations=1")
    expected = run_fake(experiment, folder / "whole" / "run")

    class Signal(Point):
        def act(self, path: Path) -> None:
            raise Stopped(signal.SIGTERM)

    statuses, n = Counter[str](), 0
    while True:
        n += 1
        here = folder / str(n)
        with monkeypatch.context() as patch:
            point = Signal(n)
            announce(patch, point)
            with suppress(Stopped):
                run_fake(experiment, here / "run")
        if point.count < n:
            break
        if (journal := here / "run" / "journal.jsonl").exists():
            ends = [event["status"] for event in read(journal) if event["event"] == "run_ended"]
            statuses[ends[-1] if ends else "no end"] += 1
        assert everything_committed_is_whole(here / "store"), n
        assert run_fake(experiment, here / "run") == expected, n
        shutil.rmtree(here)
    assert statuses["interrupted"] > 100
    assert statuses["no end"] < 20, "before the journal is open, and while the end itself is written"


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_at_any_step_loses_nothing(error: int, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    use_fakes(monkeypatch, folder / "base")
    experiment = fake_experiment("iterations=1", "patience=1")
    expected = run_fake(experiment, folder / "whole" / "run")

    class Full(Point):
        def act(self, path: Path) -> None:
            raise OSError(error, os.strerror(error))

    n, refused = 0, 0
    while True:
        n += 1 if error == errno.ENOSPC else 7
        here = folder / str(n)
        with monkeypatch.context() as patch:
            point = Full(n)
            announce(patch, point)
            try:
                run_fake(experiment, here / "run")
            except OSError as refusal:
                assert durable.is_full(refusal)
                assert str(here) in str(refusal), "the message names the path"
                assert "bytes are free" in str(refusal)
                refused += 1
        if point.count < n:
            break
        assert run_fake(experiment, here / "run") == expected, n
        shutil.rmtree(here)
    assert refused > (100 if error == errno.ENOSPC else 10)
