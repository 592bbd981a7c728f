"""No failure of Weights & Biases, faked here, hurts the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tracked import CANARY, FakeWandb, info_of, pairs_of, settings, summary_of, told, warnings_in

import stasc.run  # noqa: F401 - what settings refer to
import stasc.tracking.wandb as mirror
from stasc.records import Iteration
from stasc.runs.folder import RunFolder
from stasc.tracking import Journal, Off, Wandb

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")
CONF = Path(__file__).parents[2] / "conf" / "tracking"


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
        ({"sample_pairs": -1}, r"tracking\.sample_pairs=-1"),
    ],
)
def test_a_broken_setting_fails_when_built_and_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changed)


def test_off_follows_a_run_without_a_trace(tmp_path: Path) -> None:
    tracker = Off().start(info_of(tmp_path / "run"))
    tracker.iteration(summary_of(0, 0.5), [], [])
    tracker.finish("finished", False, [])
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
    tracker.iteration(summary_of(0, 0.5), [], [])
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
    settings().start(info_of(tmp_path / "run")).finish("finished", False, [])
    assert fake.calls == []


@pytest.mark.parametrize("broken", ["missing", "offline"])
def test_a_wandb_that_does_not_start_at_all_is_one_warning(
    broken: str, fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "wandb", None)
    fake.fail = {"init offline": OSError("disk full")}
    tracker = settings(mode="offline").start(info_of(tmp_path / "run"))
    tracker.iteration(summary_of(0, 0.5), [], [])
    tracker.finish("finished", False, [])
    assert len(warnings_in(caplog)) == 1 and "did not start" in warnings_in(caplog)[0]


@pytest.mark.parametrize("broken", ["log", "summary", "finish"])
def test_a_failure_on_the_way_is_one_warning_and_reaches_nobody(
    broken: str, fake: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    fake.fail[broken] = ConnectionResetError("gone")
    for n in range(3):
        tracker.iteration(summary_of(n, 0.5), [], [])
    tracker.finish("finished", False, [])
    assert len(fake.rows()) == (1 if broken == "log" else 3)
    assert [name for name, *_ in fake.calls][-2:] == ["finish", "teardown"]
    assert warnings_in(caplog) == [
        "W&B failed (ConnectionResetError: gone); the run continues without it, journal.jsonl is complete"
    ]


@pytest.mark.parametrize("hanging", ["init", "log", "summary", "finish", "teardown"])
def test_a_wandb_that_hangs_is_left_behind_with_one_warning(
    hanging: str, fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert mirror.UPLOAD_S + 2 * mirror.SHUT_DOWN_S < 30, "what the end of a run may take"
    for name in ("START_S", "LOG_S", "SHUT_DOWN_S"):
        monkeypatch.setattr(mirror, name, 0.1)
    fake.hangs = hanging
    if hanging == "teardown":
        fake.fail["log"] = OSError("gone")
    began = time.monotonic()
    tracker = settings().start(info_of(tmp_path / "run"), upload_s=0.1)
    arrived = [tracker.iteration(summary_of(n, 0.5), [], []) for n in range(2)]
    assert not tracker.finish("finished", False, [])
    assert time.monotonic() - began < 5
    assert arrived == [hanging in ("summary", "finish")] * 2
    assert len(warnings_in(caplog)) == 1
    assert ("no answer in" in warnings_in(caplog)[0]) is (hanging != "teardown")


def test_the_end_of_a_run_has_the_accuracies_of_iterations_that_an_earlier_start_sent(
    fake: FakeWandb, tmp_path: Path
) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    assert tracker.iteration(summary_of(2, 0.75), [], [])
    assert tracker.finish("finished", False, [summary_of(n, acc) for n, acc in enumerate((0.25, 0.5, 0.75))])
    ((given,),) = [args for name, args, _ in fake.calls if name == "summary"]
    assert given == {
        "status": "finished",
        "final/n": 2,
        "final/init_acc": 0.5,
        "final/corr_acc": 0.75,
        "final/gain": 0.25,
        "final/over_initial": 0.25,
        "final/over_correction": 0.5,
        "total/kept": 4,
        "total/steps": 2,
        "total/tokens": 0,
        "total/seconds": 4.5,
    }


def test_the_end_of_a_run_has_what_votes_came_to(fake: FakeWandb, tmp_path: Path) -> None:
    entry = summary_of(0, 0.5)
    entry["test"] |= {"samples": 16, "vote_k": 2, "vote_acc": 0.5, "vote_all_acc": 0.625, "pass_acc": 0.75}
    settings().start(info_of(tmp_path / "run")).finish("finished", False, [entry])
    ((given,),) = [args for name, args, _ in fake.calls if name == "summary"]
    votes = {"final/vote_acc": 0.5, "final/vote_all_acc": 0.625, "final/pass_acc": 0.75}
    assert votes.items() <= given.items()


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


def test_a_baseline_counts_for_no_option_of_a_design_choice(fake: FakeWandb, tmp_path: Path) -> None:
    choices = dict.fromkeys(("init", "filter", "start", "target", "finetune", "model"), "evolving")
    settings().start(info_of(tmp_path / "run", choices=choices, config={"baseline": "gold"}))
    ((_, _, given),) = [call for call in fake.calls if call[0] == "init"]
    assert {name: value for name, value in given["config"].items() if name.startswith("choice/")} == {
        "choice/baseline": "gold",
        "choice/model": "evolving",
    }


def goes_on(folder: Path, last: int, killed_at: int | None = None) -> None:
    """Runs or reruns all iterations up to `last`; a kill keeps the arrival of one from being recorded."""
    tracker = settings().start(info_of(folder))
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, tracker, 1.0)
        for n in range(last + 1):
            if n == killed_at:
                journal.write = lambda event, **fields: None  # type: ignore[method-assign]
            run.iteration(Iteration(n, None, [], [], pairs_of(2)), None, {})


def test_a_continued_run_sends_no_iteration_again(fake: FakeWandb, tmp_path: Path) -> None:
    for last in (1, 1, 3):
        goes_on(tmp_path / "run", last)
    assert [row["iteration"] for row in fake.rows()] == [0, 1, 2, 3]


def test_an_iteration_whose_arrival_was_not_noted_is_sent_again_as_the_same_step(
    fake: FakeWandb, tmp_path: Path
) -> None:
    goes_on(tmp_path / "run", 1, killed_at=1)
    goes_on(tmp_path / "run", 2)
    assert [kwargs["step"] for name, _, kwargs in fake.calls if name == "log"] == [0, 1, 1, 2]


def test_an_iteration_that_did_not_arrive_is_sent_by_the_next_start(fake: FakeWandb, tmp_path: Path) -> None:
    fake.fail["log"] = OSError("gone")
    goes_on(tmp_path / "run", 1)
    fake.fail, fake.calls = {}, []
    goes_on(tmp_path / "run", 1)
    assert [row["iteration"] for row in fake.rows()] == [0, 1]


def test_an_iteration_is_one_call_with_every_number_of_its_summary(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = settings().start(info_of(tmp_path / "run"))
    tracker.iteration(summary_of(0, 0.25), [], [])
    tracker.iteration(summary_of(1, 0.75), [], [])
    test = {"test/questions": 4, "test/init_acc": 0.5}
    train = {"train/questions": 4, "train/init_acc": 0.5, "train/corr_acc": 0.75, "train/pairs": 9, "train/kept": 2}
    assert fake.rows() == [
        {"iteration": 0, **test, "test/corr_acc": 0.25, "seconds/total": 1.5},
        {"iteration": 1, **test, "test/corr_acc": 0.75, "seconds/total": 1.5, **train}
        | {"finetune/loss": 0.25, "finetune/steps": 1},
    ]


def test_the_table_shows_kept_pairs_first_then_others_drawn_evenly(fake: FakeWandb, tmp_path: Path) -> None:
    tracker = settings(sample_pairs=5).start(info_of(tmp_path / "run"))
    pairs, same_again = pairs_of(8), pairs_of(8)
    tracker.iteration(summary_of(1, 0.5), pairs, [same_again[5], same_again[2]])
    table = fake.rows()[0]["pairs"]
    assert table["columns"] == ["n", "question", "y1", "y2", "r1", "r2", "kept"]
    assert table["data"] == [
        [1, "Capital of Peru?", "Quito", f"Lima {k}", 0.0, 1.0, k in (2, 5)] for k in (2, 5, 0, 3, 6)
    ]  # the others are 0 1 3 4 6 7, of which every second


def test_the_table_has_no_more_rows_than_asked_for(fake: FakeWandb, tmp_path: Path) -> None:
    pairs = pairs_of(9)
    for count, shown in ((0, []), (3, [0, 3, 6]), (99, list(range(9)))):
        tracker = settings(sample_pairs=count).start(info_of(tmp_path / f"run {count}"))
        tracker.iteration(summary_of(1, 0.5), pairs, pairs)
        table = fake.rows()[-1].get("pairs", {"data": []})
        assert [row[3] for row in table["data"]] == [f"Lima {k}" for k in shown]


def test_the_caches_of_wandb_stay_in_the_runs_folder_and_the_environment_as_it_was(
    fake: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(fake, "log", lambda *_, **__: seen.append(dict(os.environ)), raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", "/mine")
    before = dict(os.environ)
    settings().start(info_of(tmp_path / "run")).iteration(summary_of(0, 0.5), [], [])
    assert seen[0]["WANDB_DATA_DIR"] == str(tmp_path / "run" / "wandb" / "data")
    assert seen[0]["WANDB_CACHE_DIR"] == "/mine"
    assert dict(os.environ) == before
