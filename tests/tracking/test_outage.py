"""A W&B server that is down or hangs changes nothing in a run, and holds it up for a short time only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_lm import results
from wandb_backend import Backend
from wandb_content import MOMENTS, PARTS, Bench, recorded, stored
from zygote import Zygote

pytestmark = pytest.mark.slow

SWEEP = ("--multirun", "sweep.name=four", "seed=0,1,2,3")
STARTED = MOMENTS["after iteration 0"]


@pytest.fixture(scope="module")
def untracked(command: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a sweep of four jobs that was not tracked; the first equals a single run."""
    folder = tmp_path_factory.mktemp("untracked")
    (folder / "parts.py").write_text(PARTS)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STASC_CACHE", str(folder / "cache"))
        ran = Bench(folder, Backend(), command, environment).start(*SWEEP, "tracking=off")
    assert ran.returncode == 0, ran.stderr
    yield folder


def jobs(folder: Path) -> list[Path]:
    return sorted((folder / "multirun" / "four").glob("*-seed*"))


@pytest.mark.parametrize("trouble", ["down", "hang"])
def test_a_server_that_goes_for_good_changes_no_results_and_a_command_sends_the_rest(
    trouble: str, bench: Bench, untracked: Path
) -> None:
    ran = bench.start(at=STARTED, do=lambda pid: getattr(bench.backend, trouble)())
    bench.backend.up()
    assert ran.returncode == 0 and ran.stderr.count("W&B failed") == 1
    assert results(bench.run_folder) == results(jobs(untracked)[0])
    (command,) = re.findall("to send it: python (.*)", ran.stderr)
    bench.python(*shlex.split(command))
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_a_server_that_comes_back_gets_everything(bench: Bench, untracked: Path) -> None:
    """Tables are sent at the end, as the first ones were given up."""

    def goes_and_comes(pid: int) -> None:
        bench.backend.down()
        bench.wait(MOMENTS["in the training of iteration 2"])
        bench.backend.up()

    ran = bench.start(at=STARTED, do=goes_and_comes)
    assert ran.returncode == 0 and "W&B lacks" not in ran.stderr
    assert results(bench.run_folder) == results(jobs(untracked)[0])
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_a_server_that_hangs_from_the_start_gets_everything_later(bench: Bench) -> None:
    """The run is killed in its offline start, too. The server may come to know its id from the online one."""
    bench.backend.hang()
    bench.kill(MOMENTS["in the training of iteration 1"])
    bench.backend.up()
    ran = bench.finish("tracking.mode=offline")
    bench.wandb_sync(ran.stderr)
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_a_sweep_waits_once_for_a_server_that_is_down(bench: Bench, untracked: Path) -> None:
    bench.backend.down()
    bench.finish(*SWEEP)
    assert [results(job) for job in jobs(bench.folder)] == [results(job) for job in jobs(untracked)]
    ran_s, untracked_s = ([duration_s(job) for job in jobs(folder)] for folder in (bench.folder, untracked))
    assert ran_s[0] > 25 > 15 > sum(ran_s[1:]) - sum(untracked_s[1:])
    marker = bench.folder / "multirun" / "four" / ".wandb-unreachable"
    assert marker.exists()
    bench.backend.up()
    bench.finish("--multirun", "sweep.name=four", "seed=4")
    assert not marker.exists()
    assert [(run.group, run.state) for run in bench.backend.runs.values()] == [("four", "finished")]


def duration_s(job: Path) -> float:
    """Returns the seconds from the first file of a run to its last."""
    return (job / "summary.json").stat().st_mtime - (job / ".hydra" / "config.yaml").stat().st_mtime
