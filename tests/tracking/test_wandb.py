"""Runs as the real Weights & Biases stores them offline."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tracked import CANARY, info_of, only, pairs_of, records_of, settings, summary_of, told, warnings_in

import stasc.tracking.wandb as mirror
from stasc.tracking import redact

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


@pytest.mark.slow
def test_runs_one_after_another_leave_complete_files_and_no_secret(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    monkeypatch.setattr(sys, "argv", ["run.py", f"override={CANARY}"])
    for seed, failed in [(3, False), (4, True)]:
        config = redact({"sampling": {"n_init": 2}, "store": {"url": f"s3://{CANARY}"}, "hf_token": CANARY})
        tracker = settings().start(info_of(tmp_path / f"run{seed}", seed=seed, config=config))
        tracker.iteration(summary_of(0, 0.25), [], [])
        tracker.iteration(summary_of(1, 0.75), pairs_of(9), pairs_of(2))
        tracker.finish("failed" if failed else "finished", failed, [summary_of(0, 0.25), summary_of(1, 0.75)])

    lines = [re.fullmatch(r"W&B offline: .* `wandb sync (.*)`", line) for line in told(caplog)]
    assert len(lines) == 2 and all(lines) and warnings_in(caplog) == []
    assert capfd.readouterr() == ("", "")
    for match, seed, code in zip(lines, (3, 4), (0, 1), strict=True):
        records = records_of(Path(match[1]))  # type: ignore[index]
        run = only(records, "run")[0]
        assert (run["project"], run["run_group"], run["job_type"]) == ("stasc", "sweep", "EIE")
        assert (run["display_name"], run["tags"]) == ("EIE-0", ["a tag"])
        config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
        assert config == {
            "sampling": {"n_init": 2}, "store": {"url": "s3://***"}, "hf_token": "***", "variant": "EIE", "seed": seed,
            "choice/baseline": "none", "choice/init": "evolving", "choice/model": "tiny",
        }  # fmt: skip
        history = [record["item"] for record in only(records, "history")]
        assert [(row["iteration"], row["test/corr_acc"]) for row in history] == [(0, 0.25), (1, 0.75)]
        assert history[1]["finetune/loss"] == 0.25 and history[1]["pairs.nrows"] == 4
        assert {"glob_name": "*", "step_metric": "iteration"}.items() <= only(records, "metric")[1].items()
        final = {name: value for part in only(records, "summary") for name, value in part["update"].items()}
        expected = {"final/init_acc": 0.5, "final/corr_acc": 0.75, "final/gain": 0.25, "final/over_correction": 0.5}
        assert expected.items() <= final.items() and final["status"] == ("failed" if code else "finished")
        assert only(records, "exit") == [{"exit_code": code}] if code else len(only(records, "exit")) == 1

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert not [path for path in files if path.is_relative_to(tmp_path / "home")]


def numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """Returns every number of an iteration in summary.json, by its path."""
    parts = {name: part for name, part in entry.items() if isinstance(part, dict)}
    return {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}


@pytest.mark.parametrize("variant", ["FAE", "EAE"])
def test_each_job_of_a_sweep_leaves_a_run_with_its_group_every_number_and_the_samples(
    mirrored: Path, variant: str
) -> None:
    (job,) = (mirrored / "multirun" / "mirrored").glob(f"{variant}-seed0-*")
    (files,) = job.glob("wandb/offline-run-*")
    records = records_of(files)
    (run,) = only(records, "run")
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("mirrored", variant, f"{variant}-seed0")
    options = {"init": {"FAE": "fixed", "EAE": "evolving"}[variant], "filter": "all", "start": "evolving"}
    assert {f"choice/{name}": option for name, option in options.items()}.items() <= run["config"]["update"].items()

    summary = json.loads((job / "summary.json").read_text())
    rows = [record["item"] for record in only(records, "history")]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row, entry in zip(rows, summary["iterations"], strict=True):
        theirs = {name: value for name, value in row.items() if "/" in name}
        assert theirs == numbers(entry) and len(theirs) > 18

    questions = [json.loads(line) for line in (job / "questions.jsonl").read_text().splitlines()]
    text = {question["id"]: question["question"] for question in questions}
    pairs = [json.loads(line) for line in (job / "pairs.jsonl").read_text().splitlines()]
    for row in rows[1:]:
        table = json.loads((files / "files" / row["pairs.path"]).read_text())
        assert table["columns"] == ["n", "question", "y1", "y2", "r1", "r2", "kept"]
        mine = [pair for pair in pairs if pair["n"] == row["iteration"]]
        assert len(mine) == 12  # 3 questions, 2 initial answers to each, 2 corrections of each
        assert table["data"] == [
            [pair["n"], text[pair["question_id"]], *(pair[name] for name in ("y1", "y2", "r1", "r2", "kept"))]
            for pair in mine
        ]
    final = {name: value for part in only(records, "summary") for name, value in part["update"].items()}
    assert final["status"] == "finished" and final["test/corr_acc"] == rows[-1]["test/corr_acc"]
    assert final["final/corr_acc"] == summary["iterations"][-1]["test"]["corr_acc"] and final["total/kept"] == 24


def test_a_baseline_is_a_run_that_no_option_of_a_design_choice_counts(mirrored: Path) -> None:
    (files,) = (mirrored / "baseline").glob("wandb/offline-run-*")
    (run,) = only(records_of(files), "run")
    given = run["config"]["update"]
    assert given["choice/baseline"] == "self_consistency" and given["choice/model"] == "tiny"
    assert not {"choice/init", "choice/filter", "choice/start", "choice/finetune"} & given.keys()


def test_the_commands_that_the_user_is_told_exist() -> None:
    from wandb.cli.cli import cli

    assert {"leet", "sync"} <= cli.commands.keys()


def test_a_run_started_again_in_its_folder_goes_on_in_the_same_wandb_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        tracker = settings().start(info_of(tmp_path / "run"))
        tracker.iteration(summary_of(0, 0.5), [], [])
        tracker.finish("finished", False, [])
    files = list((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and len({path.name for path in files}) == 1
    first, second = (re.search("`wandb sync (.*)`", line)[1] for line in told(caplog))  # type: ignore[index]
    assert second == str(Path(first).parent) == str(tmp_path / "run" / "wandb")


def test_a_step_that_wandb_has_is_dropped(tmp_path: Path) -> None:
    """So a row that a killed run sends twice is stored once."""
    tracker = settings().start(info_of(tmp_path / "run"))
    for n, corr_acc in ((0, 0.25), (1, 0.5), (1, 0.5), (2, 0.75)):
        assert tracker.iteration(summary_of(n, corr_acc), [], [])
    tracker.finish("finished", False, [])
    (run,) = (tmp_path / "run").glob("wandb/offline-run-*")
    assert [record["item"]["iteration"] for record in only(records_of(run), "history")] == [0, 1, 2]


def test_a_run_that_was_never_finished_is_not_gone_on_with(tmp_path: Path) -> None:
    for name in ("died", "next"):
        tracker = settings().start(info_of(tmp_path / name))
        tracker.iteration(summary_of(0, 0.5), [], [])
    tracker.finish("finished", False, [])
    assert len({path.name for path in tmp_path.glob("*/wandb/offline-run-*/*.wandb")}) == 2


@pytest.mark.slow
def test_without_a_network_a_run_that_is_logged_in_goes_on_offline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import wandb

    real = wandb.Settings
    monkeypatch.setattr(
        wandb, "Settings", lambda **given: real(**given | ({"init_timeout": 1} if "init_timeout" in given else {}))
    )
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    for name in ("one", "two", "two"):  # the second start in a folder uses the id of the first
        tracker = settings().start(info_of(tmp_path / name))
        tracker.iteration(summary_of(0, 0.5), [], [])
        tracker.finish("finished", False, [])
    for name, count in (("one", 1), ("two", 2)):
        runs = sorted((tmp_path / name).glob("wandb/offline-run-*"))
        assert len(runs) == count and len(only(records_of(runs[-1]), "history")) == 1
    assert [text.startswith("W&B can't be reached (CommError") for text in warnings_in(caplog)] == [True] * 3
    assert capfd.readouterr() == ("", "")


def service() -> int:
    """Returns the process id of W&B's service."""
    (found,) = [
        int(child)
        for task in Path("/proc/self/task").iterdir()
        for child in (task / "children").read_text().split()
        if "wandb-core" in Path(f"/proc/{child}/cmdline").read_text()
    ]
    return found


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the service in /proc")
def test_a_run_outlives_the_service_of_wandb_and_the_next_one_gets_a_new_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    tracker.iteration(summary_of(0, 0.5), [], [])
    os.kill(service(), signal.SIGKILL)
    for n in (1, 2):
        tracker.iteration(summary_of(n, 0.5), pairs_of(2), [])
    tracker.finish("finished", False, [])
    assert len(warnings_in(caplog)) == 1

    tracker = settings().start(info_of(tmp_path / "next"))
    tracker.iteration(summary_of(0, 0.5), [], [])
    tracker.finish("finished", False, [])
    assert len(warnings_in(caplog)) == 1
    (run,) = (tmp_path / "next").glob("wandb/offline-run-*")
    assert len(only(records_of(run), "exit")) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the service in /proc")
def test_a_service_that_hangs_holds_neither_the_run_nor_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as short:
        short.setattr(mirror, "SHUT_DOWN_S", 1)
        tracker = settings().start(info_of(tmp_path / "run"), upload_s=1)
        hanging = service()
        os.kill(hanging, signal.SIGSTOP)
        tracker.iteration(summary_of(0, 0.5), [], [])
        assert not tracker.finish("finished", False, [])
    assert len(warnings_in(caplog)) == 1

    tracker = settings().start(info_of(tmp_path / "next"))
    assert service() != hanging
    assert tracker.iteration(summary_of(0, 0.5), [], []) and tracker.finish("finished", False, [])
