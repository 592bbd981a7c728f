"""Runs as the real Weights & Biases stores them offline."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tracked import (
    CANARY,
    info_of,
    lines_of,
    only,
    outcomes_of,
    records_of,
    settings,
    step_of,
    summary_of,
    told,
    warnings_in,
)

from stasc.tracking import Tracker, mirror, read, redact
from stasc.tracking import service as wandb_service

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


def tell(tracker: Tracker, *iterations: int) -> None:
    """Gives a tracker these iterations, each with an optimizer step, a pair and a test outcome; M_0's has only one."""
    for n in iterations:
        if n:
            tracker.step(n, step_of(float(n)))
        tracker.iteration(summary_of(n, n / 4), lines_of(1, n=n) if n else [], outcomes_of([1], n))


def history_of(run: Path, x: str = "iteration") -> list[dict[str, Any]]:
    """Returns the rows of metrics over `x` in a run's file, without those of tables."""
    rows = [record["item"] for record in only(records_of(run), "history")]
    return [row for row in rows if x in row and not any(name.startswith("tables") for name in row)]


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
        config = redact({"sampling": {"n_init": 2, "url": f"s3://{CANARY}"}, "store": {"dir": "x"}, "hf_token": CANARY})
        tracker = settings().start(info_of(tmp_path / f"run{seed}", seed=seed, config=config))
        tracker.iteration(summary_of(0, 0.25), [], outcomes_of(range(5), 0))
        tracker.step(1, step_of())
        tracker.iteration(summary_of(1, 0.75), lines_of(9, [2, 5]), outcomes_of(range(5)))
        tracker.finish("failed" if failed else "finished", f"no {CANARY}".replace(CANARY, "***") if failed else None)

    lines = [re.fullmatch(r"W&B offline: .* `wandb sync (.*)`", line) for line in told(caplog)]
    assert len(lines) == 2 and all(lines) and warnings_in(caplog) == []
    assert capfd.readouterr() == ("", "")
    for match, seed, code in zip(lines, (3, 4), (0, 1), strict=True):
        records = records_of(Path(match[1]))  # type: ignore[index]
        run = only(records, "run")[0]
        assert (run["project"], run["run_group"], run["job_type"]) == ("stasc", "sweep", "EIE")
        assert (run["display_name"], run["tags"]) == ("EIE-tiny-seed3", ["a tag", "tiny", "questions"])
        config = {name: value for name, value in run["config"]["update"].items() if name != "_wandb"}
        assert config == {
            "sampling": {"n_init": 2, "url": "s3://***"}, "hf_token": "***", "variant": "EIE", "seed": seed,
            "choice/baseline": "none", "choice/init": "evolving", "choice/model": "tiny",
            "commit": "0123abc", "device": "cpu", "versions": {"python": "3.11.0"},
        }  # fmt: skip
        history = [record["item"] for record in only(records, "history")]
        assert [int(row["_step"]) for row in history] == [0, 1, 2, 3, 4]
        (first, second), (step,) = [history[0], history[3]], [history[2]]
        assert (first["accuracy/correction"], second["accuracy/correction"]) == (0.25, 0.75)
        assert second["finetune/loss"] == 0.25 and (step["train/global_step"], step["train/loss"]) == (1, 2.0)
        assert [(row["tables/test.nrows"], row.get("tables/pairs.nrows")) for row in (history[1], history[4])] == [
            *((4, None), (8, 4))
        ]
        axes = {one.get("name"): (one.get("step_metric"), one["options"]) for one in only(records, "metric")}
        assert axes["accuracy/correction"][0] == axes["finetune/loss"][0] == "iteration"
        assert axes["train/loss"][0] == "train/global_step" and "iteration" not in {axes["iteration"][0]}
        assert [
            axes[name][1].get("hidden", False) for name in ("accuracy/correction", "train/loss", "finetune/loss")
        ] == [*(False, False, True)]
        final = {name: value for part in only(records, "summary") for name, value in part["update"].items()}
        kind = "last" if code else "final"
        expected = {f"{kind}/initial": 0.5, f"{kind}/correction": 0.75, f"{kind}/gain": 0.25}
        expected |= {f"{kind}/over_M0_initial": 0.25, f"{kind}/over_M0_correction": 0.5}
        assert expected.items() <= final.items() and final["status"] == ("failed" if code else "finished")
        assert final.get("error") == ("no ***" if code else None)
        assert only(records, "exit") == [{"exit_code": code}] if code else len(only(records, "exit")) == 1

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert not [path for path in files if path.is_relative_to(tmp_path / "home")]


def numbers(entry: Mapping[str, Any]) -> list[float]:
    """Returns every number of an iteration in summary.json."""
    parts = [part for part in entry.values() if isinstance(part, dict)]
    return [value for part in parts for value in part.values()]


@pytest.mark.parametrize("variant", ["FAE", "EAE"])
def test_each_job_of_a_sweep_leaves_a_run_with_its_group_every_number_and_the_samples(
    mirrored: Path, variant: str
) -> None:
    (job,) = (mirrored / "multirun" / "mirrored").glob(f"{variant}-seed0-*")
    (files,) = job.glob("wandb/offline-run-*")
    records = records_of(files)
    (run,) = only(records, "run")
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("mirrored", variant, f"{variant}-tiny-seed0")
    assert run["tags"][0] == "tiny" and len(run["tags"]) == 2
    config = run["config"]["update"]
    options = {"init": {"FAE": "fixed", "EAE": "evolving"}[variant], "filter": "all", "start": "evolving"}
    assert {f"choice/{name}": option for name, option in options.items()}.items() <= config.items()
    assert config["sampling"]["max_new_tokens"] == 4 and config["finetune"]["truncated"] == "keep"

    summary = json.loads((job / "summary.json").read_text())
    rows = history_of(files)
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    for row, entry in zip(rows, summary["iterations"], strict=True):
        theirs, mine = [value for name, value in row.items() if "/" in name], numbers(entry)
        assert not Counter(mine) - Counter(theirs) and len(mine) > 18, "each number, as often as there"

    events = [event for event in read(job / "journal.jsonl") if event["event"] == "training"]
    steps, columns = history_of(files, "train/global_step"), ("loss", "learning_rate", "grad_norm")
    for name in columns:
        assert [row[f"train/{name}"] for row in steps] == [value for event in events for value in event[name]]
    assert [row["train/global_step"] for row in steps] == list(range(1, len(steps) + 1)) and len(steps) > 2

    questions = [json.loads(line) for line in (job / "questions.jsonl").read_text().splitlines()]
    asked = {question["id"]: question for question in questions}
    tables = [record["item"] for record in only(records, "history") if "tables/test.path" in record["item"]]
    assert [row["iteration"] for row in tables] == [0, 1, 2] and "tables/pairs.path" not in tables[0]
    for name, key, of_each in (("outcomes.jsonl", "tables/test", 3), ("pairs.jsonl", "tables/pairs", 12)):
        lines = [json.loads(line) for line in (job / name).read_text().splitlines()]
        assert {n: sum(line["n"] == n for line in lines) for n in (1, 2)} == {1: of_each, 2: of_each}
        for row in tables[1:]:
            table = json.loads((files / "files" / row[f"{key}.path"]).read_text())
            expected = []
            for line in lines:
                if line["n"] <= row["iteration"]:
                    question = asked[line["question_id"]]
                    right = ["right" if line[r] == 1 else "wrong" for r in ("r1", "r2")]
                    sample = [line[name] for name in ("y1", "y2", "r1", "r2")]
                    expected.append([line["n"], question["question"], " | ".join(question["references"]), *sample])
                    expected[-1] += [" → ".join(right), *([line["kept"], ""] if "kept" in line else [])]
            assert table["data"] == expected
            columns = ("iteration", "question", "reference", "initial", "correction", "initial_reward")
            columns += ("correction_reward", "transition", *(("kept", "why") if "pairs" in key else ()))
            assert table["columns"] == [*columns]
    final = {name: value for part in only(records, "summary") for name, value in part["update"].items()}
    assert final["status"] == "finished" and final["accuracy/correction"] == rows[-1]["accuracy/correction"]
    assert final["final/correction"] == summary["iterations"][-1]["test"]["corr_acc"] and final["total/kept"] == 24


def test_a_baseline_is_a_run_that_no_option_of_a_design_choice_counts(mirrored: Path) -> None:
    (files,) = (mirrored / "baseline").glob("wandb/offline-run-*")
    (run,) = only(records_of(files), "run")
    given = run["config"]["update"]
    assert given["choice/baseline"] == "self_consistency" and given["choice/model"] == "tiny"
    assert not {"choice/init", "choice/filter", "choice/start", "choice/finetune"} & given.keys()


def test_the_commands_that_the_user_is_told_exist() -> None:
    from wandb.cli.cli import cli

    assert {"leet", "sync"} <= cli.commands.keys()


def test_a_resumed_run_continues_its_wandb_run_with_the_rows_after_the_last_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for iterations in ((0, 1), (0, 1, 2), (0, 1, 2)):
        tracker = settings().start(info_of(tmp_path / "run"))
        tell(tracker, *iterations)
        assert tracker.finish("finished", None)
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 3 and len({path.name for path in files}) == 1
    steps = [[int(row["item"]["_step"]) for row in only(records_of(path.parent), "history")] for path in files]
    assert steps == [[0, 1, 2, 3, 4], [5, 6, 7], []]
    first, *later = (re.search("`wandb sync (.*)`", line)[1] for line in told(caplog))  # type: ignore[index]
    assert later == [str(Path(first).parent)] * 2 == [str(tmp_path / "run" / "wandb")] * 2


def test_an_unfinished_run_is_not_continued_by_a_run_in_another_folder(tmp_path: Path) -> None:
    for name in ("died", "next"):
        tracker = settings().start(info_of(tmp_path / name))
        tell(tracker, 0)
    tracker.finish("finished", None)
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
        tracker = settings().start(info_of(tmp_path / name, group=None))
        tell(tracker, 0)
        tracker.finish("finished", None)
    for name, count in (("one", 1), ("two", 2)):
        runs = sorted((tmp_path / name).glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
        assert len(runs) == count and [len(history_of(run)) for run in runs] == [1, 0][:count]
    assert [text.startswith("W&B can't be reached (CommError") for text in warnings_in(caplog)] == [True] * 3
    assert capfd.readouterr() == ("", "")


def service() -> int:
    """Returns the process id of W&B's service."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread may end meanwhile
            children = (task / "children").read_text().split()
            found += [int(one) for one in children if "wandb-core" in Path(f"/proc/{one}/cmdline").read_text()]
    (pid,) = found
    return pid


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the service in /proc")
def test_a_run_outlives_the_service_of_wandb_and_the_next_one_gets_a_new_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    tell(tracker, 0)
    os.kill(service(), signal.SIGKILL)
    tell(tracker, 1, 2)
    assert not tracker.finish("finished", None)
    fault, advice = warnings_in(caplog)
    assert fault.startswith("W&B failed (") and advice.startswith("W&B lacks a part of this run; to send it: ")

    tracker = settings().start(info_of(tmp_path / "next"))
    tell(tracker, 0)
    assert tracker.finish("finished", None)
    assert warnings_in(caplog) == [fault, advice]
    (run,) = (tmp_path / "next").glob("wandb/offline-run-*")
    assert len(only(records_of(run), "exit")) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the service in /proc")
def test_a_service_that_hangs_holds_neither_the_run_nor_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as short:
        for module, name in ((mirror, "SHUT_DOWN_S"), (mirror, "LOG_S"), (wandb_service, "SHUT_DOWN_S")):
            short.setattr(module, name, 1)
        tracker = settings().start(info_of(tmp_path / "run"), upload_s=1)
        hanging = service()
        os.kill(hanging, signal.SIGSTOP)
        tell(tracker, 0)
        assert not tracker.finish("finished", None)
    fault, advice = warnings_in(caplog)
    assert fault.startswith("W&B failed (") and advice.startswith("W&B lacks a part of this run; to send it: ")

    tracker = settings().start(info_of(tmp_path / "next"))
    assert service() != hanging
    tell(tracker, 0)
    assert tracker.finish("finished", None)
