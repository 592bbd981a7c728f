"""A W&B run rebuilt from a run's folder equals the original."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tracked import FakeWandb, help_of, info_of, only, pairs_of, records_of, settings, step_of, summary_of, told

from stasc.records import Iteration, Split
from stasc.runs.folder import RunFolder
from stasc.tracking import Journal, Tracker
from stasc.tracking.__main__ import main as sync_main
from stasc.tracking.earlier import earlier_starts
from stasc.tracking.tracker import Nothing

DATA = Path(__file__).parents[1] / "data"
MINE = {"filter": "mine"}  # an option of the user's own
PROVENANCE = {"tags": ["tiny", "questions"], "commit": "0123abc", "device": "cuda", "versions": {"python": "3.11.0"}}

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


def recorded(
    folder: Path, last: int = 2, config: Mapping[str, Any] | None = None, tracker: Tracker | None = None
) -> Path:
    """Returns the folder of a run that W&B never saw, unless it is given a tracker."""
    folder.mkdir(parents=True)
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, tracker or Nothing(), 1.0)
        pairs = pairs_of(3)
        config = config or {"seed": 3, "tracking": {"_target_": "Off"}}
        splits = [Split("test", (pairs[0].question,))]
        run.begin(splits, name="EIE-tiny-seed3", group="sweep", config=config, **PROVENANCE)
        for n in range(last + 1):
            trained = pairs if n else []
            if n:
                run.step(n, 1, step_of(n / 4))
            run.iteration(Iteration(n, None, trained, trained[n:], [replace(pairs[0], r2=n / 2)]), None, {})
        run.end("finished")
    return folder


def test_a_rebuilt_run_is_the_run_as_it_was(fake: FakeWandb, tmp_path: Path) -> None:
    """A rebuilt run and the run itself give W&B the same, except for id and folder."""
    tracking = {"_target_": "stasc.tracking.Wandb", "tags": ["a"], "table_rows": 2}
    init = {"_target_": "stasc.choices.init.Fixed", "letter": "F", "x": 1}
    config = {"seed": 3, "init": init, "tracking": tracking}
    sync_main(["sync", str(recorded(tmp_path / "run", config=config)), "--project", "other", "--entity", "team"])
    (given,) = [kwargs for name, _, kwargs in fake.calls if name == "init"]
    assert {name: given[name] for name in ("name", "group", "job_type", "config", "tags", "project", "entity")} == {
        "name": "EIE-tiny-seed3",
        "group": "sweep",
        "job_type": "EIE",
        "config": {
            **{"seed": 3, "init": {"x": 1}, "variant": "EIE", "commit": "0123abc", "device": "cuda"},
            **{"versions": {"python": "3.11.0"}, "choice/baseline": "none", "choice/init": "fixed"},
        },
        "tags": ["a", "tiny", "questions"],
        "project": "other",
        "entity": "team",
    }
    rows = fake.rows()
    assert [(row["iteration"], row["accuracy/correction"]) for row in rows] == [(0, 0.0), (1, 0.0), (2, 1.0)]
    steps = fake.rows("train/global_step")
    assert [(row["train/global_step"], row["train/loss"]) for row in steps] == [(1, 0.25), (2, 0.5)]
    assert fake.steps() == [0, 2, 3, 5, 6]
    test = ["Capital of Peru?", "Lima", "Quito", "Lima 0", 0.0]
    assert fake.tables("test")[-1] == [
        *([n, *test, n / 2, "wrong → wrong"] for n in (0, 1)),
        [2, *test, 1.0, "wrong → right"],
    ]
    pair = ["Capital of Peru?", "Lima", "Quito"]
    shown, why = [0.0, 1.0, "wrong → right"], "left out by the filter: r1 0, r2 1"
    assert fake.tables("pairs")[-1] == [
        [1, *pair, "Lima 1", *shown, True, ""],
        [1, *pair, "Lima 0", *shown, False, why],
        [2, *pair, "Lima 2", *shown, True, ""],
        [2, *pair, "Lima 0", *shown, False, why],
    ]
    final = {"final/initial": 0.0, "final/correction": 1.0, "final/gain": 1.0, "final/over_M0_correction": 1.0}
    assert fake.summary["status"] == "finished" and final.items() <= fake.summary.items()
    assert fake.calls[-1] == ("finish", (), {"exit_code": 0})


def test_a_rebuilt_run_gets_the_rows_that_the_run_itself_got(fake: FakeWandb, tmp_path: Path) -> None:
    config = {"seed": 3, "tracking": {"_target_": "stasc.tracking.Wandb", "table_rows": 2}}
    tracker = settings(table_rows=2).start(info_of(tmp_path / "own", group="sweep"))
    folder = recorded(tmp_path / "run", config=config, tracker=tracker)
    own, fake.calls = [call for call in fake.calls if call[0].startswith("log")], []
    sync_main(["sync", str(folder)])
    assert [call for call in fake.calls if call[0].startswith("log")] == own and len(own) == 8


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
    assert earlier_starts(folder, None).id is None


@pytest.mark.parametrize(("there", "sent"), [(0, [0, 2, 3, 5, 6]), (3, [3, 5, 6]), (6, [6]), (8, [])])
def test_a_wandb_run_that_is_continued_gets_the_rows_that_it_lacks(
    there: int, sent: list[int], fake: FakeWandb, tmp_path: Path
) -> None:
    fake.starting_step = there
    sync_main(["sync", str(recorded(tmp_path / "run")), "--id", "abc"])
    assert fake.steps() == sent
    assert fake.summary["final/correction"] == 1.0


def test_of_what_a_continued_run_told_twice_the_last_counts(fake: FakeWandb, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", last=1)
    line = json.loads((folder / "pairs.jsonl").read_text().splitlines()[0])
    with (folder / "pairs.jsonl").open("a") as file:
        file.write(json.dumps({**line, "y2": "Lima again"}) + "\n" + '{"cut sho')
    with Journal(folder / "journal.jsonl") as journal:
        journal.write("run_started", name="EIE-tiny-seed3", group=None, variant="EIE", seed=3, config={}, choices=MINE)
        journal.write("training", n=1, **{name: [value] for name, value in asdict(step_of(0.75)).items()})
        journal.write("iteration", **summary_of(1, 0.75))
    sync_main(["sync", str(folder)])
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert given["group"] is None and given["config"]["choice/filter"] == "mine"
    assert [(row["iteration"], row["accuracy/correction"]) for row in fake.rows()] == [(0, 0.0), (1, 0.75)]
    assert [row["train/loss"] for row in fake.rows("train/global_step")] == [0.75]
    shown = sorted(row[4] for row in fake.tables("pairs")[-1])
    assert shown == ["Lima 0", "Lima 1", "Lima 2", "Lima again"]
    assert fake.summary["status"] == "running" and fake.summary["error"] == "the run did not end"
    assert "last/correction" in fake.summary and fake.calls[-1] == ("finish", (), {"exit_code": 1})


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
    history = [record["item"] for record in only(records, "history")]
    assert [row["accuracy/correction"] for row in history if "accuracy/correction" in row] == [0.0, 0.0, 1.0]
    assert only(records, "run")[0]["display_name"] == "EIE-tiny-seed3"


def test_the_help_imports_nothing_that_takes_long() -> None:
    assert "RUN_DIR" in help_of("stasc.tracking", "sync", without={"wandb", "torch", "hydra"})


def test_lines_of_schema_1_are_sent_with_the_ids_that_they_have(fake: FakeWandb, tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run")
    for name in ("pairs.jsonl", "outcomes.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        old = [{**row, "question": row["question_id"]} for row in rows]
        for row in old:
            del row["question_id"]
            row.pop("dropped", None)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in old))
    sync_main(["sync", str(folder)])
    for key, count in (("test", 3), ("pairs", 6)):
        rows = fake.tables(key)[-1]
        assert len(rows) == count and {(row[1], row[2]) for row in rows} == {("q1", "Lima")}
    assert {(row[8], row[9]) for row in fake.tables("pairs")[-1]} == {(True, ""), (False, "")}


@pytest.mark.parametrize("schema", [1, 2])
def test_a_run_of_an_earlier_version_is_rebuilt_without_what_that_did_not_record(
    schema: int, fake: FakeWandb, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(DATA / f"run-schema-{schema}", folder)
    sync_main(["sync", str(folder)])
    summary = json.loads((folder / "summary.json").read_text())
    accuracies = [entry["test"]["corr_acc"] for entry in summary["iterations"]]
    assert [row["accuracy/correction"] for row in fake.rows()] == accuracies and len(accuracies) > 1
    assert fake.rows("train/global_step") == []
    outcomes = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    assert [row[4] for row in fake.tables("test")[-1]] == [line["y2"] for line in outcomes]
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()] if schema == 2 else []
    shown = [row[4] for table in fake.tables("pairs")[-1:] for row in table]
    assert sorted(shown) == sorted(line["y2"] for line in pairs)
