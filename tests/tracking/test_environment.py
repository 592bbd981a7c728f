"""W&B's environment variables override the defaults, and the command line overrides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tracked import FakeWandb, info_of, only, records_of, settings, summary_of, told

from stasc.cli.build import build_experiment
from stasc.cli.compose import compose
from stasc.cli.job import own_wandb_run, warn_once
from stasc.runs.execute import run
from stasc.runs.experiment import Experiment
from stasc.tracking import Wandb
from stasc.tracking.console import Console

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")
SMALL = ("experiment=debug", "tracking=wandb", "iterations=0", "dataset.n_test=1", "dataset.n_train=1")
NAMES = ("project", "entity", "group", "name", "job_type", "tags")
DEFAULTS = dict(zip(NAMES, ("stasc", None, "sweep", "EIE-seed0", "EIE", None), strict=True))
SET = {
    "WANDB_PROJECT": "my project",
    "WANDB_RUN_GROUP": "my group",
    "WANDB_NAME": "my name",
    "WANDB_JOB_TYPE": "my job",
}
THEIRS = {**DEFAULTS, "project": "my project", "group": "my group", "name": "my name", "job_type": "my job"}
GIVEN = ("tracking.project=p", "tracking.entity=e", "tracking.group=g", "tracking.name=n", "tracking.job_type=j")


def experiment(*overrides: str) -> Experiment:
    return build_experiment(compose([*SMALL, *overrides]))


@pytest.mark.parametrize(
    ("environment", "overrides", "expected"),
    [
        ({}, (), DEFAULTS),
        (dict.fromkeys(SET, ""), (), DEFAULTS),
        (SET, (), THEIRS),
        (SET, ("tracking.project=p",), {**THEIRS, "project": "p"}),
        (SET, (*GIVEN, "tracking.tags=t"), dict(zip(NAMES, (*"pegnj", ["t"]), strict=True))),
    ],
    ids=["neither", "empty", "environment", "one setting", "all settings"],
)
def test_the_environment_wins_over_defaults_and_loses_to_settings(
    environment: dict[str, str],
    overrides: tuple[str, ...],
    expected: dict[str, Any],
    fake: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run(experiment(*overrides), tmp_path, "sweep", Console())
    (given,) = (given for name, _, given in fake.calls if name == "init")
    assert {name: given[name] for name in NAMES} == expected


def test_in_a_sweep_a_name_is_what_all_names_begin_with_and_an_id_is_no_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warn_once.cache_clear()
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    names = []
    for seed in (0, 1):
        tracking = own_wandb_run(experiment(f"seed={seed}")).tracking
        assert isinstance(tracking, Wandb)
        names.append(tracking.name)
    assert names == ["mine-EIE-seed0", "mine-EIE-seed1"]
    assert [record.getMessage()[:34] for record in caplog.records] == ["WANDB_RUN_ID is the id of one run:"]


@pytest.mark.parametrize(
    ("value", "mode", "modes"),
    [("true", "auto", []), ("1", "auto", []), ("false", "auto", ["online"]), ("true", "offline", ["offline"])],
)
def test_wandb_disabled_says_so_once_unless_a_mode_is_given(
    value: str,
    mode: str,
    modes: list[str],
    fake: FakeWandb,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_DISABLED", value)
    settings(mode=mode).start(info_of(tmp_path / "run"))
    assert fake.modes() == modes
    assert ("W&B is off, as WANDB_DISABLED says" in told(caplog)) == (not modes)


def test_wandb_itself_reads_what_no_setting_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ENTITY", "us"), ("TAGS", "a,b"), ("NOTES", "a note"), ("MODE", "offline")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    tracker = settings(tags=[]).start(info_of(tmp_path / "run"))
    tracker.iteration(summary_of(0, 0.5), [], [])
    tracker.finish("finished", False, [])
    (files,) = (tmp_path / "run").glob("wandb/offline-run-*")
    (written,) = only(records_of(files), "run")
    assert (written["entity"], written["tags"], written["notes"]) == ("us", ["a", "b"], "a note")
