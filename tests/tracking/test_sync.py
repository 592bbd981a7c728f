"""A W&B run rebuilt from a run's folder equals the original."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tracked import FakeWandb, help_of, only, pairs_of, records_of, summary_of, told

import stasc.tracking.wandb as mirror
from stasc.records import Iteration
from stasc.runs.folder import RunFolder
from stasc.tracking import Journal
from stasc.tracking.__main__ import load
from stasc.tracking.__main__ import main as sync_main
from stasc.tracking.tracker import Nothing

MINE = {"filter": "mine"}  # an option of the user's own

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


def recorded(folder: Path, last: int = 2, config: Mapping[str, Any] | None = None) -> Path:
    """Returns the folder of a run that W&B never saw."""
    folder.mkdir(parents=True)
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, Nothing(), 1.0)
        run.begin((), name="EIE-seed3", group="sweep", config=config or {"seed": 3, "tracking": {"_target_": "Off"}})
        pairs = pairs_of(3)
        for n in range(last + 1):
            trained = pairs if n else []
            run.iteration(Iteration(n, None, trained, trained[n:], [replace(pairs[0], r2=n / 2)]), None, {})
        run.end("finished")
    return folder


def test_a_rebuilt_run_is_the_run_as_it_was(fake: FakeWandb, tmp_path: Path) -> None:
    """A rebuilt run and the run itself give W&B the same, except for id and folder."""
    tracking = {"_target_": "stasc.tracking.Wandb", "tags": ["a"], "sample_pairs": 2}
    config = {"seed": 3, "init": {"_target_": "stasc.choices.init.Fixed"}, "tracking": tracking}
    sync_main(["sync", str(recorded(tmp_path / "run", config=config)), "--project", "other", "--entity", "team"])
    (given,) = [kwargs for name, _, kwargs in fake.calls if name == "init"]
    assert {name: given[name] for name in ("name", "group", "job_type", "config", "tags", "project", "entity")} == {
        "name": "EIE-seed3",
        "group": "sweep",
        "job_type": "EIE",
        "config": {**config, "variant": "EIE", "seed": 3, "choice/baseline": "none", "choice/init": "fixed"},
        "tags": ["a"],
        "project": "other",
        "entity": "team",
    }
    rows = fake.rows()
    assert [(row["iteration"], row["test/corr_acc"]) for row in rows] == [(0, 0.0), (1, 0.0), (2, 1.0)]
    assert [[line[3:] for line in row["pairs"]["data"]] for row in rows[1:]] == [
        [["Lima 1", 0.0, 1.0, True], ["Lima 2", 0.0, 1.0, True]],
        [["Lima 2", 0.0, 1.0, True], ["Lima 0", 0.0, 1.0, False]],
    ]
    ((summary,),) = [args for name, args, _ in fake.calls if name == "summary"]
    final = {"final/init_acc": 0.0, "final/corr_acc": 1.0, "final/gain": 1.0, "final/over_correction": 1.0}
    assert summary["status"] == "finished" and final.items() <= summary.items()
    assert fake.calls[-1] == ("finish", (), {"exit_code": 0})


def test_each_rebuilding_is_a_wandb_run_of_its_own_unless_told_otherwise(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.logged_in = False
    folder = recorded(tmp_path / "run")
    for options in ([], [], ["--id", "abc"]):
        sync_main(["sync", str(folder), *options])
    one, two, three = (kwargs["id"] for name, _, kwargs in fake.calls if name == "init")
    assert len({one, two, three}) == 3 and three == "abc"
    assert told(caplog)[0].startswith(f"W&B offline: look with `wandb leet {folder}/sync/wandb/")
    assert mirror._previous_id(folder) is None


def test_of_what_a_continued_run_told_twice_the_last_counts(fake: FakeWandb, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", last=1)
    line = json.loads((folder / "pairs.jsonl").read_text().splitlines()[0])
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({**line, "y2": "Lima again"}) + "\n" + '{"cut sho')
    with Journal(folder / "journal.jsonl") as journal:
        journal.write("run_started", name="EIE-seed3", group="later", variant="EIE", seed=3, config={}, choices=MINE)
        journal.write("iteration", **summary_of(1, 0.75))
    sync_main(["sync", str(folder)])
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert given["group"] == "later" and given["config"]["choice/filter"] == "mine"
    assert [(row["iteration"], row["test/corr_acc"]) for row in fake.rows()] == [(0, 0.0), (1, 0.75)]
    assert sorted(row[3] for row in fake.rows()[1]["pairs"]["data"]) == ["Lima 1", "Lima 2", "Lima again"]
    ((summary,),) = [args for name, args, _ in fake.calls if name == "summary"]
    assert summary["status"] == "running" and fake.calls[-1] == ("finish", (), {"exit_code": 1})


@pytest.mark.parametrize("damage", ["journal", "pairs", "missing", "no name", "nothing started", "two for one id"])
def test_what_cannot_be_read_is_one_line_and_nothing_is_sent(
    damage: str, fake: FakeWandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, folder = recorded(tmp_path / "whole"), recorded(tmp_path / "run")
    journal, pairs = folder / "journal.jsonl", folder / "pairs.jsonl"
    options, message = [], ""
    if damage == "journal":
        journal.write_bytes(journal.read_bytes().replace(b"corr_acc", b"corr_acd", 1))
        message = f"{journal}, line 2: does not match its checksum"
    elif damage == "pairs":
        pairs.write_text(pairs.read_text() + '{"n": 1}\n')
        message = f"{pairs}, line 7: not a pair (KeyError: 'question')"
    elif damage == "missing":
        journal.unlink()
        message = f"No such file or directory: '{journal}'"
    elif damage == "no name":
        journal.unlink()
        with Journal(journal) as old:
            old.write("run_started", variant="EIE", seed=3, config={})
        message = f"{journal}, line 1: run_started has no name; an older version wrote it"
    elif damage == "nothing started":
        journal.write_text("")
        message = f"{journal}: no run has started in this folder"
    else:
        options, message = ["--id", "abc"], "--id abc: expected one RUN_DIR, got 2"
    with pytest.raises(SystemExit) as stopped:
        sync_main(["sync", str(whole), str(folder), *options])
    assert str(stopped.value).startswith("error: ") and message in str(stopped.value)
    assert fake.calls == []


def test_a_rebuilt_run_that_did_not_arrive_is_an_error(fake: FakeWandb, tmp_path: Path) -> None:
    folders = [recorded(tmp_path / name) for name in ("one", "two")]
    fake.fail["log"] = OSError("gone")
    with pytest.raises(SystemExit, match=f"error: W&B did not take all of {folders[0]}, {folders[1]}"):
        sync_main(["sync", *map(str, folders)])


@pytest.mark.slow
def test_the_command_rebuilds_a_run_that_wandb_can_read(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run")
    command = [sys.executable, "-m", "stasc.tracking", "sync", str(folder), "--mode", "offline"]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    (run,) = folder.glob("sync/wandb/offline-run-*")
    assert answer.stderr == f"W&B offline: look with `wandb leet {run}`, upload with `wandb sync {run}`\n"
    records = records_of(run)
    assert [record["item"]["test/corr_acc"] for record in only(records, "history")] == [0.0, 0.0, 1.0]
    assert only(records, "run")[0]["display_name"] == "EIE-seed3"


def test_the_help_imports_nothing_that_takes_long() -> None:
    assert "RUN_DIR" in help_of("stasc.tracking", "sync", without={"wandb", "torch", "hydra"})


def test_pairs_of_schema_1_are_sent_with_the_ids_that_they_have(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    old = [{**row, "question": row["question_id"]} for row in rows]
    for row in old:
        del row["question_id"], row["dropped"]
    new = load(folder)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    for n, pairs in load(folder).pairs.items():
        assert [(pair.question.id, pair.y2, kept) for pair, kept in pairs] == [
            (pair.question.id, pair.y2, kept) for pair, kept in new.pairs[n]
        ]
    assert {pair.question.text for pair, _ in new.pairs[1]} == {pair.question.text for pair in pairs_of(3)}
