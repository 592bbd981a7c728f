"""No failure of Weights & Biases, faked here, hurts the run."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tracked import (
    CANARY,
    FakeWandb,
    info_of,
    lines_of,
    outcomes_of,
    pairs_of,
    settings,
    step_of,
    summary_of,
    told,
    warnings_in,
)

import stasc.run  # noqa: F401 - what settings refer to
from stasc.records import Iteration
from stasc.runs.folder import RunFolder
from stasc.tracking import Journal, Off, Tracker, Wandb, mirror, service
from stasc.tracking import wandb as option

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")
CONF = Path(__file__).parents[2] / "conf" / "tracking"


def tell(tracker: Tracker, *iterations: int) -> None:
    """Gives a tracker these iterations, each with one test outcome and, but for M_0's, one pair."""
    for n in iterations:
        tracker.iteration(summary_of(n, 0.5), lines_of(1, n=n) if n else [], outcomes_of([1], n))


# Settings


def test_the_yaml_files_build_their_classes_and_nothing_else() -> None:
    built = {}
    for path in sorted(CONF.glob("*.yaml")):
        given = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(given, dict)
        cls = {"stasc.tracking.Wandb": Wandb, "stasc.tracking.Off": Off}[given.pop("_target_")]
        built[path.stem] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    assert built == {"off": Off(), "wandb": Wandb("stasc", None, None, None, None, "auto", [], 32)}
    with pytest.raises(Exception, match="proyect"):
        OmegaConf.merge(OmegaConf.structured(Wandb), {"proyect": "x"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "ofline"}, r"tracking\.mode=ofline: expected one of auto, online, offline"),
        ({"project": ""}, r"tracking\.project="),
        ({"project": "a/b"}, r"tracking\.project=a/b: expected 1 to 128 characters"),
        ({"tags": ["ok", ""]}, r"tracking\.tags: '' has 0 characters"),
        ({"tags": ["x" * 65]}, r"tracking\.tags: .* has 65 characters"),
        ({"table_rows": -1}, r"tracking\.table_rows=-1: expected 0 \(no tables\) or more"),
    ],
)
def test_a_broken_setting_fails_when_built_and_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changed)


def test_off_follows_a_run_without_a_trace(tmp_path: Path) -> None:
    tracker = Off().start(info_of(tmp_path / "run"))
    tracker.step(1, step_of())
    tell(tracker, 0)
    tracker.finish("finished", None)
    assert list((tmp_path / "run").iterdir()) == []


def test_importing_the_module_does_not_import_wandb() -> None:
    code = "import sys, stasc.tracking; sys.exit('wandb' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": ":".join(sys.path)}).returncode
        == 0
    )


# W&B, played


def test_auto_is_online_for_who_is_logged_in(fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings().start(info_of(tmp_path / "run"))
    assert fake.modes() == ["online"]
    assert told(caplog) == ["W&B run: https://wandb.example/run"]


def test_auto_is_offline_for_who_is_not_and_one_line_says_how_to_look_and_upload(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.logged_in = False
    settings().start(info_of(tmp_path / "a run"))
    folder = f"'{tmp_path}/a run/wandb/offline-run-1'"
    assert fake.modes() == ["offline"] and warnings_in(caplog) == []
    assert told(caplog) == [f"W&B offline: look with `wandb leet {folder}`, upload with `wandb sync {folder}`"]


def test_online_without_a_key_goes_offline_with_a_warning(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.logged_in = False
    settings(mode="online").start(info_of(tmp_path / "run"))
    assert fake.modes() == ["offline"]
    assert len(warnings_in(caplog)) == 1 and "wandb login" in warnings_in(caplog)[0]


def test_a_start_that_fails_online_goes_offline_with_one_warning_without_secrets(
    fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    fake.fail["init online"] = TimeoutError(f"no answer to {CANARY}\nmore")
    tracker = settings().start(info_of(tmp_path / "run"))
    assert fake.modes() == ["online", "offline"]
    assert warnings_in(caplog) == ["W&B can't be reached (TimeoutError: no answer to ***); continuing offline"]
    tell(tracker, 0)
    assert len(fake.rows()) == 1


def test_a_start_waits_30_seconds_at_most(fake: FakeWandb, tmp_path: Path) -> None:
    settings().start(info_of(tmp_path / "run"))
    assert fake.calls[0][2]["settings"]["init_timeout"] <= 30


def test_offline_asks_for_no_login(fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "login", lambda **_: pytest.fail("asked"))
    settings(mode="offline").start(info_of(tmp_path / "run"))
    assert fake.modes() == ["offline"]


def test_auto_respects_a_wandb_that_the_user_switched_off(fake: FakeWandb, tmp_path: Path) -> None:
    fake.mode = "disabled"
    settings().start(info_of(tmp_path / "run")).finish("finished", None)
    assert fake.calls == []


@pytest.mark.parametrize("broken", ["missing", "offline"])
def test_a_wandb_that_does_not_start_at_all_is_one_warning(
    broken: str, fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "wandb", None)
    fake.fail = {"init offline": OSError("disk full")}
    tracker = settings(mode="offline").start(info_of(tmp_path / "run"))
    tell(tracker, 0)
    tracker.finish("finished", None)
    assert len(warnings_in(caplog)) == 1 and "did not start" in warnings_in(caplog)[0]


def test_jobs_of_a_sweep_wait_once_for_a_server_that_is_down(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fail["init online"] = TimeoutError("no answer")
    for name in ("one", "two"):
        settings().start(info_of(tmp_path / name))
    assert fake.modes() == ["online", "offline", "offline"]
    assert told(caplog, level=logging.WARNING) == ["W&B can't be reached (TimeoutError: no answer); continuing offline"]
    settings().start(info_of(tmp_path / "other sweep" / "run"))
    settings().start(info_of(tmp_path / "single", group=None))
    assert fake.modes()[3:] == ["online", "offline"] * 2

    fake.fail = {}
    monkeypatch.setattr(service, "answers", lambda: True)
    for name in ("three", "four"):
        settings().start(info_of(tmp_path / name))
    assert fake.modes()[7:] == ["online", "online"]
    assert not (tmp_path / option.OUTAGE).exists()


@pytest.mark.parametrize(("broken", "sent"), [("define_metric", 0), ("summary", 0), ("log", 1), ("finish", 3)])
def test_a_failure_on_the_way_is_one_warning_and_reaches_nobody(
    broken: str, sent: int, fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    fake.fail[broken] = ConnectionResetError("gone")
    tell(tracker, 0, 1, 2)
    assert not tracker.finish("finished", None)
    assert len(fake.rows()) == sent
    assert [name for name, *_ in fake.calls][-2:] == ["finish", "teardown"]
    fault, advice = warnings_in(caplog)
    assert fault == "W&B failed (ConnectionResetError: gone); the run continues without it, journal.jsonl is complete"
    assert advice == lacking(fake, tmp_path / "run")


def lacking(fake: FakeWandb, folder: Path) -> str:
    """The advice at the end of a run of which a part did not arrive."""
    (run_id,) = (given["id"] for name, _, given in fake.calls if name == "init")
    return f"W&B lacks a part of this run; to send it: python -m stasc.tracking sync {folder} --id {run_id}"


@pytest.mark.parametrize("back", [True, False])
def test_a_failure_of_tables_keeps_no_metrics_back_and_the_end_sends_whole_ones(
    back: bool, fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "answers", lambda: back)
    tracker = settings().start(info_of(tmp_path / "run"))
    fake.fail["log tables"] = ConnectionResetError("gone")
    tell(tracker, 0, 1, 2)
    assert tracker.finish("finished", None) is back
    assert [row["iteration"] for row in fake.rows()] == [0, 1, 2]
    assert fake.steps("log tables") == [1], "one try"
    assert len(fake.summary.get("tables/test", {"data": []})["data"]) == (3 if back else 0)
    assert fake.summary["final/iteration"] == 2
    fault, *advice = warnings_in(caplog)
    assert fault == "W&B does not take tables (ConnectionResetError: gone); metrics are sent without them"
    assert advice == ([] if back else [lacking(fake, tmp_path / "run")])


@pytest.mark.parametrize("hanging", ["init", "log", "log tables", "summary", "finish", "teardown"])
def test_a_wandb_that_hangs_is_left_behind_with_one_warning(
    hanging: str, fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert option.UPLOAD_S + 2 * service.SHUT_DOWN_S + service.PROBE_S < 30, "what the end of a run may take"
    for module, name in (
        *((option, "START_S"), (mirror, "LOG_S"), (mirror, "TABLES_S")),
        *((mirror, "SHUT_DOWN_S"), (service, "SHUT_DOWN_S")),
    ):
        monkeypatch.setattr(module, name, 0.1)
    fake.hangs = hanging
    if hanging == "teardown":
        fake.fail["log"] = OSError("gone")
    began = time.monotonic()
    tracker = settings().start(info_of(tmp_path / "run"), upload_s=0.1)
    tell(tracker, 0, 1)
    assert not tracker.finish("finished", None)
    assert time.monotonic() - began < 5
    sent = {"init": [], "log": [0], "summary": [], "teardown": [0]}.get(hanging, [0, 1])
    assert [row["iteration"] for row in fake.rows()] == sent
    fault, *advice = warnings_in(caplog)
    assert ("no answer in" in fault) is (hanging != "teardown")
    assert advice == ([] if hanging == "init" else [lacking(fake, tmp_path / "run")])


def test_the_end_of_a_run_has_the_accuracies_of_iterations_that_an_earlier_start_sent(
    fake: FakeWandb, tmp_path: Path
) -> None:
    fake.starting_step = 6
    tracker = settings().start(info_of(tmp_path / "run"))
    for n, accuracy in enumerate((0.25, 0.5, 0.75)):
        tracker.iteration(summary_of(n, accuracy), lines_of(1, n=n), outcomes_of([1], n))
    assert tracker.finish("finished", None)
    assert fake.rows() == [] and fake.tables("test") == [], "the server has them"
    ended = {name: value for name, value in fake.summary.items() if name.startswith(("final", "total", "last", "st"))}
    assert ended == {
        "status": "finished",
        "final/iteration": 2,
        "final/initial": 0.5,
        "final/correction": 0.75,
        "final/gain": 0.25,
        "final/over_M0_initial": 0.25,
        "final/over_M0_correction": 0.5,
        "total/kept": 4,
        "total/steps": 2,
        "total/tokens": 0,
        "total/seconds": 4.5,
    }
    assert fake.summary["accuracy/correction"] == 0.75
    assert fake.calls[-1] == ("finish", (), {"exit_code": 0})


def test_a_resumed_run_takes_back_what_its_failure_left_in_the_summary(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    tell(tracker, 0)
    tracker.finish("failed", "iteration 1: OSError: gone")
    assert fake.calls[-1] == ("finish", (), {"exit_code": 1})
    assert fake.summary["error"] == "iteration 1: OSError: gone" and fake.summary["last/correction"] == 0.5
    assert not [name for name in fake.summary if name.startswith("final/")]
    fake.starting_step = 2
    tracker = settings().start(info_of(tmp_path / "run"))
    tell(tracker, 0, 1)
    assert fake.summary["status"] == "running"
    assert not [name for name in fake.summary if name.startswith(("last/", "error"))]
    tracker.finish("finished", None)
    assert fake.summary["final/correction"] == 0.5 and "last/correction" not in fake.summary


@pytest.mark.parametrize(("status", "uploaded"), [("finished", True), ("interrupted", False)])
def test_offline_files_count_as_uploaded_once_a_complete_run_was_sent_online(
    status: str, uploaded: bool, fake: FakeWandb, tmp_path: Path
) -> None:
    """An interrupted start may have sent nothing of what they hold."""
    folder = tmp_path / "run"
    file = folder / "wandb" / "offline-run-1-abc" / "run-abc.wandb"
    copies = folder / "wandb" / "data"
    for path in (file.parent, copies):
        path.mkdir(parents=True)
    file.touch()
    tracker = settings().start(info_of(folder))
    assert tracker.finish(status, None if uploaded else "a signal")
    assert file.with_name("run-abc.wandb.synced").exists() is uploaded
    assert copies.exists() is not uploaded


def test_a_server_that_answers_nonsense_does_not_count_as_reachable(
    fake: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    import requests

    def nonsense(*_: object, **__: object) -> None:
        raise requests.exceptions.ConnectionError("BadStatusLine")

    monkeypatch.setattr(requests, "head", nonsense)
    assert not service.answers()


def test_a_run_has_the_options_of_its_choices_under_names_that_can_be_grouped_by(
    fake: FakeWandb, tmp_path: Path
) -> None:
    choices = {"init": "fixed", "filter": "mine", "model": "tiny"}
    settings().start(info_of(tmp_path / "run", choices=choices, config={"baseline": None}))
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert {name: value for name, value in given["config"].items() if name.startswith("choice/")} == {
        "choice/baseline": "none",
        "choice/init": "fixed",
        "choice/filter": "mine",
        "choice/model": "tiny",
    }


def test_a_tag_that_is_too_long_for_wandb_is_cut_and_none_is_repeated(fake: FakeWandb, tmp_path: Path) -> None:
    settings(tags=["tiny", "mine"]).start(info_of(tmp_path / "run", tags=["tiny", "x" * 65]))
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert given["tags"] == ["tiny", "mine", "x" * 64]


def resume(fake: FakeWandb, folder: Path, last: int) -> None:
    """Runs or resumes all iterations up to `last`, each with two optimizer steps, with a server that has all it got."""
    fake.starting_step = max([*fake.steps(), *fake.steps("log tables")], default=-1) + 1
    tracker = settings().start(info_of(folder))
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, tracker, 1.0)
        for n in range(last + 1):
            for number in (1, 2) if n else ():
                run.step(n, number, step_of(float(10 * n + number)))
            run.iteration(Iteration(n, None, pairs_of(2) if n else [], [], pairs_of(1)), None, {})


def test_a_resumed_run_sends_no_row_again(fake: FakeWandb, tmp_path: Path) -> None:
    for last in (1, 1, 3):
        resume(fake, tmp_path / "run", last)
    assert [row["iteration"] for row in fake.rows()] == [0, 1, 2, 3]
    steps = fake.rows("train/global_step")
    assert [(row["train/global_step"], row["train/loss"]) for row in steps] == [
        *((1, 11.0), (2, 12.0), (3, 21.0), (4, 22.0), (5, 31.0), (6, 32.0))
    ]
    assert fake.steps() == [0, 2, 3, 4, 6, 7, 8, 10, 11, 12], "by hand: G + 2n - 1 for a step, G + 2n for an iteration"
    assert fake.steps("log tables") == [1, 5, 9, 13]
    assert [[row[0] for row in table] for table in fake.tables("pairs")] == [
        [1, 1],
        [1, 1, 2, 2],
        [1, 1, 2, 2, 3, 3],
    ], "a table has the rows of all iterations so far"


@pytest.mark.parametrize("arrived", range(15))
def test_a_run_that_was_killed_after_any_row_sends_the_other_ones(
    arrived: int, fake: FakeWandb, tmp_path: Path
) -> None:
    resume(fake, tmp_path / "whole", 3)
    whole = [(kwargs["step"], args[0]) for name, args, kwargs in fake.calls if name.startswith("log")]
    fake.calls = [("log", ({},), {"step": arrived - 1})] if arrived else []
    resume(fake, tmp_path / "run", 3)
    sent = [(kwargs["step"], args[0]) for name, args, kwargs in fake.calls[1 if arrived else 0 :] if "log" in name]
    assert [(step, {**row, "time/elapsed": 0}) for step, row in sent] == [
        (step, {**row, "time/elapsed": 0}) for step, row in whole if step >= arrived
    ]
    assert [step for step, _ in whole] == list(range(14))


def test_an_iteration_that_did_not_arrive_is_sent_by_the_next_start(fake: FakeWandb, tmp_path: Path) -> None:
    fake.fail["log"] = OSError("gone")
    resume(fake, tmp_path / "run", 1)
    fake.fail, fake.calls = {}, []
    resume(fake, tmp_path / "run", 1)
    assert [row["iteration"] for row in fake.rows()] == [0, 1]
    assert [row["train/global_step"] for row in fake.rows("train/global_step")] == [1, 2]


def test_a_chart_appears_when_a_metric_first_varies_and_keeps_its_axis(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = settings(table_rows=0).start(info_of(tmp_path / "run"))
    for n, truncated in enumerate((0.0, 0.0, 0.5, 0.0)):
        entry = summary_of(n, 0.5)
        tracker.iteration({**entry, "test": {**entry["test"], "init_truncated": truncated}}, [], [])
        assert fake.charts()["answers/initial_truncated"] is (n > 1)
    calls = [given for name, args, given in fake.calls if args == ("answers/initial_truncated",)]
    assert [(given["step_metric"], given["hidden"], given["overwrite"]) for given in calls] == [
        ("iteration", True, True),
        ("iteration", False, True),
    ]


@pytest.mark.parametrize("count", [0, 3, 99])
def test_the_tables_have_no_more_rows_of_an_iteration_than_asked_for(
    count: int, fake: FakeWandb, tmp_path: Path
) -> None:
    tracker = settings(table_rows=count).start(info_of(tmp_path / "run"))
    for n in (1, 2):
        tracker.iteration(summary_of(n, 0.5), lines_of(9, range(5), n), outcomes_of(range(7), n))
    tracker.finish("finished", None)
    for key, whole in (("test", 7), ("pairs", 9)):
        assert [len(table) for table in fake.tables(key)] == (
            [min(count, whole), 2 * min(count, whole)] if count else []
        )


def test_the_caches_of_wandb_stay_in_the_runs_folder_and_the_environment_as_it_was(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(fake, "log", lambda *_, **__: seen.append(dict(os.environ)), raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", "/mine")
    before = dict(os.environ)
    tell(settings().start(info_of(tmp_path / "run")), 0)
    assert seen[0]["WANDB_DATA_DIR"] == str(tmp_path / "run" / "wandb" / "data")
    assert seen[0]["WANDB_CACHE_DIR"] == "/mine"
    assert dict(os.environ) == before
