"""The fake W&B backend, driven by wandb itself: by its SDK online, and by `wandb sync`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.error import HTTPError, URLError

import pytest
from wandb_backend import Backend
from wandb_runs import HISTORY, FakeRun, Metric, TableRows

START = """
import os, signal, sys, time, wandb
def start(mode="online", **given):
    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
                              disable_git=True, x_file_stream_transmit_interval=1, x_transaction_log_flush_interval=1)
    return wandb.init(project="p", id="r1", mode=mode, resume="allow", settings=settings, **given)
def log(run, *steps, **more):
    for n in steps:
        run.log({"iteration": n, **more}, step=n, commit=True)
"""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as started:
        yield started
    assert started.unknown == []


def launch(backend: Backend, folder: Path, command: Sequence[str]) -> subprocess.Popen[str]:
    """Starts a command that finds the backend, and nothing of the user's own W&B."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    folders = {name: str(folder) for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    environment = {**kept, **backend.environment(), **folders, "WANDB_SILENT": "true"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=folder, text=True, stdout=pipe, stderr=pipe)


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def script(code: str) -> list[str]:
    return [sys.executable, "-c", START + textwrap.dedent(code)]


def sync(backend: Backend, folder: Path, *options: str) -> None:
    finish(launch(backend, folder, [sys.executable, "-m", "wandb", "sync", *options, str(folder / "wandb")]))


def rows(run: FakeRun) -> list[tuple[int, int]]:
    return [(row["_step"], row["iteration"]) for row in run.history]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not happen in 30 s"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_whole_run_is_stored_as_it_was_logged(backend: Backend, tmp_path: Path) -> None:
    code = """
        run = start(name="a run", config={"seed": 3, "sampling": {"n": 2}}, tags=["x"], group="g", job_type="EIE")
        run.define_metric("iteration", hidden=True)
        run.define_metric("accuracy/*", step_metric="iteration")
        run.log({"iteration": 0, "accuracy/a": 0.25}, step=0, commit=True)
        run.log({"iteration": 1, "accuracy/a": 0.75}, step=1, commit=True)
        run.summary["status"] = "finished"
        run.finish()
    """
    finish(launch(backend, tmp_path, script(code)))

    run = backend.runs["r1"]
    assert (run.id, run.name, run.project, run.entity) == ("r1", "a run", "p", "tester")
    assert (run.tags, run.group, run.job_type) == (["x"], "g", "EIE")
    assert run.config == {"seed": 3, "sampling": {"n": 2}}
    assert set(run.metrics) == {Metric("iteration", hidden=True), Metric("accuracy/*", "iteration")}
    assert rows(run) == [(0, 0), (1, 1)] and [row["accuracy/a"] for row in run.history] == [0.25, 0.75]
    assert run.summary["accuracy/a"] == 0.75 and run.summary["status"] == "finished"
    assert (run.state, run.exit_code, run.crashed, run.dropped) == ("finished", 0, False, 0)
    assert {"config.yaml", "wandb-summary.json"} <= set(run.files)


@pytest.mark.slow
def test_a_failed_run_keeps_its_exit_code(backend: Backend, tmp_path: Path) -> None:
    finish(launch(backend, tmp_path, script("run = start(); log(run, 0); run.finish(exit_code=3)")))
    assert (backend.runs["r1"].state, backend.runs["r1"].exit_code) == ("failed", 3)


@pytest.mark.slow
def test_a_resumed_run_continues_after_its_last_row(backend: Backend, tmp_path: Path) -> None:
    code = "run = start(config={'a': 1, 'b': 1}, tags=['x']); log(run, 0, 1); run.summary['gone'] = 1; run.finish()"
    finish(launch(backend, tmp_path, script(code)))
    code = """
        run = start(config={"b": 2})
        print(run.resumed, run.starting_step, run.summary["gone"])
        del run.summary["gone"]
        log(run, 1, 2, 3)
        run.finish()
    """
    assert finish(launch(backend, tmp_path, script(code))) == "True 2 1\n"

    run = backend.runs["r1"]
    assert rows(run) == [(0, 0), (1, 1), (2, 2), (3, 3)] and run.dropped == 0  # wandb itself leaves out the second 1
    assert run.config == {"a": 1, "b": 2} and run.tags == ["x"]
    assert run.summary["iteration"] == 3 and "gone" not in run.summary


@pytest.mark.slow
def test_a_killed_run_is_neither_finished_nor_failed_until_it_is_resumed(backend: Backend, tmp_path: Path) -> None:
    process = launch(backend, tmp_path, script("run = start(); log(run, 0, 1); time.sleep(60)"))
    wait_for(lambda: "r1" in backend.runs and len(backend.runs["r1"].history) == 2)
    process.kill()
    process.communicate()
    assert backend.runs["r1"].crashed and backend.runs["r1"].state == "running"

    finish(launch(backend, tmp_path, script("run = start(); log(run, 2); run.finish()")))
    assert rows(backend.runs["r1"]) == [(0, 0), (1, 1), (2, 2)] and backend.runs["r1"].state == "finished"


@pytest.mark.slow
def test_offline_folders_of_a_run_are_synced_one_after_another(backend: Backend, tmp_path: Path) -> None:
    code = "run = start('offline'); log(run, 0, 1); time.sleep(2.5); os.kill(os.getpid(), signal.SIGKILL)"
    launch(backend, tmp_path, script(code)).communicate()
    finish(launch(backend, tmp_path, script("run = start('offline', name='second'); log(run, 2); run.finish()")))
    assert backend.runs == {}

    sync(backend, tmp_path)
    run = backend.runs["r1"]
    assert rows(run) == [(0, 0), (1, 1), (2, 2)] and (run.state, run.name) == ("finished", "second")

    sync(backend, tmp_path, "--include-synced")
    assert rows(run) == [(0, 0), (1, 1), (2, 2)] and run.dropped == 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_tables_are_read_back_as_rows(backend: Backend, tmp_path: Path, mode: str) -> None:
    code = f"""
        run = start({mode!r})
        growing = wandb.Table(columns=["n", "text"], log_mode="INCREMENTAL")
        for n in range(3):
            growing.add_data(n, f"row {{n}}")
            last = wandb.Table(columns=["n"], data=[[n]])
            run.log({{"growing": growing, "tables/last": last}}, step=n, commit=True)
            time.sleep(0.1)  # increments are named by the time
        run.finish()
    """
    finish(launch(backend, tmp_path, script(code)))
    if mode == "offline":
        sync(backend, tmp_path)

    run = backend.runs["r1"]
    assert run.tables("growing") == TableRows(["n", "text"], [[0, "row 0"], [1, "row 1"], [2, "row 2"]])
    assert run.tables("tables/last") == TableRows(["n"], [[2]])
    media = [data for name, data in run.files.items() if name.startswith("media/table/tables/last")]
    assert sorted(json.loads(data)["data"] for data in media) == [[[0]], [[1]], [[2]]]
    with pytest.raises(KeyError):
        run.tables("other")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [Backend.down, Backend.hang])
def test_rows_logged_during_an_outage_arrive_after_it(
    backend: Backend, tmp_path: Path, fault: Callable[[Backend], None]
) -> None:
    go = tmp_path / "go"
    code = f"""
        run = start()
        log(run, 0)
        while not os.path.exists({str(go)!r}):
            time.sleep(0.05)
        log(run, 1)
        run.finish()
    """
    process = launch(backend, tmp_path, script(code))
    wait_for(lambda: "r1" in backend.runs and len(backend.runs["r1"].history) == 1)
    url = backend.url
    fault(backend)
    go.touch()
    time.sleep(1.5)
    assert rows(backend.runs["r1"]) == [(0, 0)] and process.poll() is None

    backend.up()
    finish(process)
    assert backend.url == url
    assert rows(backend.runs["r1"]) == [(0, 0), (1, 1)] and backend.runs["r1"].state == "finished"


def test_a_row_whose_step_is_not_new_is_dropped_and_a_stored_line_overwritten() -> None:
    run = FakeRun("r1", "p", "tester", "a run")
    lines = [json.dumps({"_step": step, "x": x}) for step, x in [(0, "a"), (1, "b"), (1, "c"), (2, "d")]]
    run.stream(HISTORY, 0, lines)
    assert [row["x"] for row in run.history] == ["a", "b", "d"] and run.dropped == 1
    run.stream(HISTORY, 1, [json.dumps({"_step": 1, "x": "e"})])
    assert [row["x"] for row in run.history] == ["a", "e", "d"] and len(run.lines[HISTORY]) == 4


def test_the_server_goes_down_hangs_and_comes_back_at_the_same_address() -> None:
    with Backend() as backend:
        url = backend.url

        def ask(name: str, timeout_s: float = 10) -> bytes:
            body = json.dumps({"query": f"query {name} {{ x }}"}).encode()
            with urllib.request.urlopen(f"{url}/graphql", body, timeout_s) as answer:
                return bytes(answer.read())

        assert json.loads(ask("Viewer"))["data"]["viewer"]["entity"] == "tester"
        backend.down()
        with pytest.raises(URLError, match="refused"):
            ask("Viewer")
        backend.up()
        backend.hang()
        with pytest.raises(TimeoutError):
            ask("Viewer", timeout_s=0.2)
        backend.up()
        backend.latency_s = 0.3
        start = time.monotonic()
        with pytest.raises(HTTPError, match="400"):
            ask("Unheard")
        assert time.monotonic() - start >= 0.3 and backend.unknown == ["Unheard"]
