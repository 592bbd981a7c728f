"""Runs whose W&B was offline, at least for some of their starts, end up in W&B as their journals record them."""

from __future__ import annotations

import pytest
from wandb_content import MOMENTS, Bench, recorded, stored

pytestmark = pytest.mark.slow

OFFLINE = "tracking.mode=offline"


def test_an_offline_run_is_whole_once_it_is_synced(bench: Bench) -> None:
    told = bench.finish(OFFLINE).stderr
    assert not bench.backend.requests
    bench.wandb_sync(told)
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_an_offline_run_that_was_killed_again_and_again_is_whole_once_it_is_synced(bench: Bench) -> None:
    """Each start resumes the one before; it finds what that one left in its file."""
    for moment in MOMENTS.values():
        bench.kill(moment, OFFLINE)
    bench.wandb_sync(bench.finish(OFFLINE).stderr)
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_a_run_that_was_killed_online_and_resumed_offline_is_whole_once_it_is_synced(bench: Bench) -> None:
    bench.kill(MOMENTS["in the training of iteration 2"])
    told = bench.finish(OFFLINE).stderr
    assert "wandb sync --include-online" in told
    bench.wandb_sync(told)
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_a_run_that_was_killed_offline_and_resumed_online_is_whole_and_syncs_nothing_twice(bench: Bench) -> None:
    bench.kill(MOMENTS["in the training of iteration 2"], OFFLINE)
    assert not list(bench.run_folder.glob("wandb/*/*.synced"))
    bench.finish()
    assert stored(bench.wandb_run) == recorded(bench.run_folder)
    requests = len(bench.backend.requests)
    bench.wandb_sync()
    assert len(bench.backend.requests) == requests


def test_an_offline_start_stays_unsynced_until_an_online_one_has_sent_everything(bench: Bench) -> None:
    bench.kill(MOMENTS["in the training of iteration 1"], OFFLINE)
    bench.kill(MOMENTS["in the training of iteration 2"])
    assert not list(bench.run_folder.glob("wandb/*/*.synced"))
    bench.finish()
    assert list(bench.run_folder.glob("wandb/offline-*/*.synced"))
    assert stored(bench.wandb_run) == recorded(bench.run_folder)


def test_a_run_that_was_killed_offline_then_online_and_resumed_offline_is_whole_once_it_is_synced(bench: Bench) -> None:
    """Rows get other numbers, because W&B appends to those that it has; the x-axes of metrics do not use them."""
    bench.kill(MOMENTS["in the training of iteration 2"], OFFLINE)
    bench.set(WANDB__FILE_STREAM_TRANSMIT_INTERVAL="1", TEST_SLEEP_S="0.05")
    bench.kill(lambda bench: any(len(run.history) >= 6 for run in bench.backend.runs.values()))
    bench.wandb_sync(bench.finish(OFFLINE).stderr)
    there, here = stored(bench.wandb_run), recorded(bench.run_folder)
    assert len(there.pop("numbers")) == len(here.pop("numbers"))
    assert there == here
