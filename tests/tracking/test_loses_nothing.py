"""W&B ends up with what a run's journal records, however the run ended and whenever it was killed and resumed."""

from __future__ import annotations

import os
import signal
import time

import pytest
from wandb_content import MOMENTS, Bench, kill, recorded, stored

pytestmark = pytest.mark.slow

QUICKLY = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # so that much arrives before a kill


def test_wandb_holds_a_whole_run(bench: Bench) -> None:
    bench.finish()
    assert stored(bench.wandb_run) == recorded(bench.run_folder)
    assert bench.wandb_run.group is None and bench.wandb_run.dropped == 0


def test_wandb_holds_a_failed_run_and_later_the_resumed_one(bench: Bench) -> None:
    bench.set(TEST_FAIL_SEED="0")
    assert bench.start().returncode == 1
    failed = stored(bench.wandb_run)
    assert failed == recorded(bench.run_folder)
    assert failed["summary"]["status"] == "failed" and "the reward failed" in failed["summary"]["error"]
    assert failed["summary"]["last/iteration"] == 1 and failed["exit_code"] == 1
    bench.set(TEST_FAIL_SEED="")
    bench.finish()
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_wandb_holds_an_interrupted_run(number: signal.Signals, bench: Bench) -> None:
    moment = MOMENTS["in the training of iteration 2"]
    assert bench.start(at=moment, do=lambda pid: os.kill(pid, number)).returncode == 128 + number
    assert bench.wandb_run.summary["status"] == "interrupted"
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_wandb_holds_a_run_that_was_killed_and_resumed(moment: str, bench: Bench) -> None:
    bench.kill(MOMENTS[moment])
    bench.finish()
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_wandb_holds_a_run_that_was_killed_when_some_of_it_had_arrived(bench: Bench) -> None:
    bench.set(**QUICKLY, TEST_SLEEP_S="0.05")
    bench.kill(lambda bench: any(len(run.history) >= 6 for run in bench.backend.runs.values()))
    bench.kill(lambda bench: len(bench.wandb_run.history) >= 12)
    bench.finish()
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_wandb_holds_a_run_that_was_killed_in_its_last_upload(bench: Bench) -> None:
    """The run is resumed, because its journal does not call it complete before W&B has it."""

    def kill_in_upload(pid: int) -> None:
        bench.backend.hang()
        time.sleep(2)
        kill(pid)

    ran = bench.start(at=lambda bench: (bench.run_folder / "model").exists(), do=kill_in_upload)
    bench.backend.up()
    assert ran.returncode == -signal.SIGKILL
    bench.finish()
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_sync_rebuilds_a_run_that_was_not_tracked(bench: Bench) -> None:
    bench.finish("tracking=off")
    assert not bench.backend.runs
    bench.python("-m", "stasc.tracking", "sync", str(bench.run_folder))
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_sync_completes_a_wandb_run_that_lacks_a_part(bench: Bench) -> None:
    bench.set(**QUICKLY, TEST_SLEEP_S="0.05")
    bench.kill(lambda bench: any(len(run.history) >= 6 for run in bench.backend.runs.values()))
    bench.finish("tracking=off")
    bench.python("-m", "stasc.tracking", "sync", str(bench.run_folder), "--id", bench.wandb_run.id)
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_wandb_holds_the_jobs_of_a_sweep_and_which_one_failed(bench: Bench) -> None:
    bench.set(TEST_FAIL_SEED="2")
    assert bench.start("--multirun", "sweep.name=four", "seed=0,1,2,3").returncode == 1
    folders = sorted((bench.folder / "multirun" / "four").glob("*-seed*"))
    runs = sorted(bench.backend.runs.values(), key=lambda run: run.name)
    assert [stored(run) for run in runs] == [recorded(folder) for folder in folders]
    assert [run.group for run in runs] == ["four"] * 4 and [run.exit_code for run in runs] == [0, 0, 1, 0]
