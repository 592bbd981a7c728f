"""W&B's environment variables override the defaults, and the command line overrides them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tracked import FakeWandb, info_of, only, outcomes_of, records_of, settings, summary_of, told
from zygote import Zygote

from stasc.cli.build import build_experiment
from stasc.cli.compose import compose
from stasc.runs.execute import run
from stasc.runs.experiment import Experiment
from stasc.tracking.console import Console

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")
SMALL = ("experiment=debug", "tracking=wandb", "iterations=0", "dataset.n_test=1", "dataset.n_train=1")
NAMES = ("project", "entity", "group", "name", "job_type", "tags")
TAGS = ["tiny", "synthetic"]  # the model and the data set
DEFAULTS = dict(zip(NAMES, ("stasc", None, None, "EIE-tiny-seed0", "EIE", TAGS), strict=True))
SET = {
    "WANDB_PROJECT": "my project",
    "WANDB_RUN_GROUP": "my group",
    "WANDB_NAME": "my name",
    "WANDB_JOB_TYPE": "my job",
}
THEIRS = {**DEFAULTS, "project": "my project", "group": "my group", "name": "my name", "job_type": "my job"}
GIVEN = ("tracking.project=p", "tracking.entity=e", "tracking.group=g", "tracking.name=n", "tracking.job_type=j")


def experiment(*overrides: str) -> Experiment:
    return build_experiment(compose([*SMALL, *overrides]), {"model": "tiny", "dataset": "synthetic"})


@pytest.mark.parametrize(
    ("environment", "overrides", "expected"),
    [
        ({}, (), DEFAULTS),
        (dict.fromkeys(SET, ""), (), DEFAULTS),
        (SET, (), THEIRS),
        (SET, ("tracking.project=p",), {**THEIRS, "project": "p"}),
        (SET, (*GIVEN, "tracking.tags=t"), dict(zip(NAMES, (*"pegnj", ["t", *TAGS]), strict=True))),
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
    run(experiment(*overrides), tmp_path, None, Console())
    (given,) = (given for name, _, given in fake.calls if name == "init")
    assert {name: given[name] for name in NAMES} == expected


@pytest.mark.parametrize(
    ("overrides", "name", "group"),
    [
        ((), "EIE-tiny-seed0", "ablation"),
        (("tracking.name=mine", "seed=1"), "mine-EIE-tiny-seed1", "ablation"),
        (("tracking.name=mine", "tracking.group=ours"), "mine-EIE-tiny-seed0", "ours"),
    ],
)
def test_a_job_of_a_sweep_has_its_name_as_group_and_appends_its_own_name_to_a_given_one(
    overrides: tuple[str, ...], name: str, group: str, fake: FakeWandb, tmp_path: Path
) -> None:
    run(experiment(*overrides), tmp_path, "ablation", Console())
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert (given["name"], given["group"]) == (name, group)


def test_a_run_on_validation_questions_is_tagged_so(fake: FakeWandb, tmp_path: Path) -> None:
    run(experiment("evaluation.split=validation", "tracking.tags=[]"), tmp_path, None, Console())
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert given["tags"] == [*TAGS, "validation"]


def test_a_sweep_leaves_out_the_id_of_one_run_and_says_so_once(
    command: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    ran = command.run(tmp_path, "--multirun", *SMALL, "tracking.mode=offline", "seed=0,1", "sweep.name=ids")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("WANDB_RUN_ID is the id of one run: each job of the sweep gets one of its own") == 1
    files = {path.name for path in tmp_path.glob("multirun/ids/*/wandb/offline-run-*/*.wandb")}
    assert len(files) == 2 and "run-abc.wandb" not in files


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
    tracker.iteration(summary_of(0, 0.5), [], outcomes_of([1], 0))
    tracker.finish("finished", None)
    (files,) = (tmp_path / "run").glob("wandb/offline-run-*")
    (written,) = only(records_of(files), "run")
    assert (written["entity"], written["tags"], written["notes"]) == ("us", ["a", "b", "tiny", "questions"], "a note")
