"""Environment variables of launchers of distributed training change no run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_lm import results
from test_run import experiment, run_tiny

from stasc.runs.prepare import prepare

THEIRS = {
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_USE_FSDP": "true",
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
}


def test_its_settings_do_not_reach_the_training_and_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("iterations=1", "filter=lenient")
    run_tiny(tmp_path / "plain", *given)
    for name, value in THEIRS.items():
        monkeypatch.setenv(name, value)
    run_tiny(tmp_path / "launched", *given)
    assert results(tmp_path / "launched") == results(tmp_path / "plain")
    assert {name: os.environ.get(name) for name in THEIRS} == THEIRS


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "2")
    with pytest.raises(ValueError, match=f"^{name}=2: a run is one process on one device; start it without torchrun"):
        prepare(experiment())
