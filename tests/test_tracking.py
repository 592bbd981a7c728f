"""The journal is a record that can be trusted; Weights & Biases is a mirror that can't hurt the run."""

from __future__ import annotations

import importlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from omegaconf import OmegaConf

import stasc.tracking.redaction as redaction
import stasc.tracking.wandb as mirror
from stasc.folder import RunFolder
from stasc.records import Answer, Iteration, Pair, Question
from stasc.tracking import Journal, Off, RunInfo, Wandb, learn, read, redact, scrub
from stasc.tracking.__main__ import main as sync_main
from stasc.tracking.tracker import Nothing

CONF = Path(__file__).parents[1] / "conf" / "tracking"
CANARY = "canary-7c1f9e"


@pytest.fixture(autouse=True)
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield
    if isinstance(sys.modules.get("wandb"), types.ModuleType) and hasattr(sys.modules["wandb"], "__path__"):
        sys.modules["wandb"].teardown()


def settings(**changed: Any) -> Wandb:
    given = {"project": "stasc", "entity": None, "mode": "auto", "tags": ["a tag"], "sample_pairs": 4}
    return Wandb(**(given | changed))


def info_of(folder: Path, **changed: Any) -> RunInfo:
    folder.mkdir(parents=True, exist_ok=True)
    given: dict[str, Any] = {
        "name": "EIE-0",
        "group": "sweep",
        "variant": "EIE",
        "seed": 3,
        "folder": folder,
        "config": {"pairing": "own"},
    }
    return RunInfo(**(given | changed))


def pairs_of(count: int) -> list[Pair]:
    question = Question("q1", "Capital of Peru?", ("Lima",))
    return [Pair(question, 0, 0, k, Answer("Quito", 2), Answer(f"Lima {k}", 2), 0.0, 1.0) for k in range(count)]


def summary_of(n: int, corr_acc: float) -> dict[str, Any]:
    test = {"questions": 4, "init_acc": 0.5, "corr_acc": corr_acc}
    train = {**test, "pairs": 9, "kept": 2} if n else None
    finetune = {"loss": 0.25, "steps": 1} if n else None
    return {"n": n, "test": test, "train": train, "finetune": finetune, "seconds": {"total": 1.5}}


def told(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What the module logs. W&B's own log goes to the run's folder, though pytest catches it here."""
    records = [record for record in caplog.records if record.name == "stasc.tracking"]
    return [record.getMessage() for record in records if record.levelno >= level]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return told(caplog, logging.WARNING)


# The journal


def written(path: Path, count: int = 3) -> bytes:
    with Journal(path) as journal:
        for i in range(count):
            journal.write("step", i=i, text="a → b\r\n", nested={"list": [1, 2.5, None, True]})
    return path.read_bytes()


def test_an_event_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl", count=1)
    (event,) = read(tmp_path / "journal.jsonl")
    time = datetime.fromisoformat(event.pop("time"))
    assert time.utcoffset() == timedelta(0) and abs(datetime.now(UTC) - time) < timedelta(minutes=1)
    assert event == {"event": "step", "i": 0, "text": "a → b\r\n", "nested": {"list": [1, 2.5, None, True]}}


def test_a_line_carries_the_crc32_of_the_rest_of_it(tmp_path: Path) -> None:
    for line in written(tmp_path / "journal.jsonl").splitlines():
        event = json.loads(line)
        crc = event.pop("crc32")
        assert re.fullmatch("[0-9a-f]{8}", crc)
        assert zlib.crc32(json.dumps(event).encode()) == int(crc, 16)


def test_an_event_is_on_disk_when_write_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "journal.jsonl", []
    journal = Journal(path)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    journal.write("one")
    journal.write("two")
    assert [event["event"] for event in read(path)] == ["one", "two"]
    assert synced == [path.stat().st_ino] * 2
    journal.close()


def test_a_float_that_is_not_finite_becomes_null_under_its_name(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.write("finetune", loss=float("nan"), norms=[float("inf"), 1.0], by={"x": float("-inf")})
    (event,) = read(tmp_path / "journal.jsonl")
    assert (event["loss"], event["norms"], event["by"]) == (None, [None, 1.0], {"x": None})


def test_what_is_no_json_value_is_refused_by_name_and_leaves_no_line(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        with pytest.raises(TypeError, match=r"'start', made\.by\[1\]: PosixPath|WindowsPath"):
            journal.write("start", made={"by": [1, Path("x")]})
        with pytest.raises(TypeError, match="dict is no JSON value"):
            journal.write("start", made={1: 2})
        for name in ("time", "crc32"):
            with pytest.raises(ValueError, match=f"{name!r} is the journal's own"):
                journal.write("start", **{name: 1})
    assert (tmp_path / "journal.jsonl").read_bytes() == b""


def test_any_changed_byte_is_found_and_its_line_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = written(path)
    second = data.index(b"\n") + 1
    for at in range(second, data.index(b"\n", second) + 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        events = read(path)
        assert next(events)["i"] == 0
        with pytest.raises(ValueError, match=r"journal\.jsonl, line 2: .*the 1 events before it are whole"):
            next(events)


def test_a_last_line_cut_short_is_left_out_and_the_journal_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = written(path)
    for size in range(data.rindex(b"\n", 0, -1) + 1, len(data)):
        path.write_bytes(data[:size])
        assert [event["i"] for event in read(path)] == [0, 1]
        with Journal(path) as journal:
            journal.write("again")
        assert [event["event"] for event in read(path)] == ["step", "step", "again"]


def test_a_reopened_journal_keeps_what_it_has(tmp_path: Path) -> None:
    before = written(tmp_path / "journal.jsonl")
    after = written(tmp_path / "journal.jsonl", count=1)
    assert after.startswith(before) and len(list(read(tmp_path / "journal.jsonl"))) == 4


# Secrets


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "HF_TOKEN", "hfToken", "HFToken", "token_2", "authtoken"),
        *("key", "api_key", "apiKey", "apikey", "API-KEY", "api.keys", "aws_secret_access_key"),
        *(
            "secret",
            "client_secret",
            "my secret",
            "password",
            "db_password",
            "passwd",
            "credentials",
            "wandb_credential",
        ),
    ],
)
def test_a_value_named_like_a_secret_is_hidden(name: str) -> None:
    assert redact({"a": [{name: "x"}, {name: {"b": 1}}, {name: 12}]}) == {"a": [{name: "***"}] * 3}


@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "tokens", "monkey", "keyboard", "tokenizer", "keep_models", "hockey", "secretary", "passes"],
)
def test_a_harmless_name_keeps_its_value(name: str) -> None:
    assert redact({"a": {name: 20, "b": [{name: "x"}]}}) == {"a": {name: 20, "b": [{name: "x"}]}}


def test_a_secret_that_is_not_set_is_shown_as_such() -> None:
    empty = {"token": None, "use_key": False, "any_key": True, "exclude_keys": [], "password": ""}
    assert redact(empty) == empty


def test_a_secret_in_an_override_is_hidden_with_all_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["+db.password=abc", "model.path=x", "++a.api_key='b c', 'd'", "~token=1", "seed=0,+db.token=abc,n=1"]
    hidden = ["+db.password=***", "model.path=x", "++a.api_key=***", "~token=***", "seed=0,+db.token=***"]
    assert redact({"task": overrides}) == {"task": hidden}


def test_what_was_learnt_is_hidden_in_any_text_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_learned", set())
    secret = f"{CANARY}/\n'é"
    learn({"db": [{"password": secret, "user": "harmless-1"}], "api_key": 1234567890, "token": ["nested-in-a-list"]})
    for text in (secret, repr(secret)[1:-1], json.dumps({"x": secret}), f"https://u:{quote(secret, '')}@host"):
        assert CANARY not in scrub(f"before {text} after")
        assert scrub(f"before {text} after").startswith("before ")
    assert scrub("harmless-1 1234567890 nested-in-a-list") == "harmless-1 *** ***"
    assert redact({"url": f"u:{secret}@host"}) == {"url": "u:***@host"}


def test_a_log_line_and_its_traceback_are_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    try:
        raise ValueError(f"no {CANARY}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "refused %s", (CANARY,), sys.exc_info())
    text = redaction.Formatter("%(message)s").format(record)
    assert text.startswith("refused ***\nTraceback") and text.endswith("ValueError: no ***")


def test_values_of_secret_environment_variables_are_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    monkeypatch.setenv("LONGER_PASSWORD", CANARY + "-and-more")
    monkeypatch.setenv("SHORT_KEY", "own")
    config = {"url": f"https://u:{CANARY}@host", "same": [CANARY], "longer": CANARY + "-and-more", "pairing": "own"}
    assert redact(config) == {"url": "https://u:***@host", "same": ["***"], "longer": "***", "pairing": "own"}
    assert config["same"] == [CANARY]


# Settings


def test_the_yaml_files_build_their_classes_and_nothing_else() -> None:
    built = {}
    for path in sorted(CONF.glob("*.yaml")):
        given = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(given, dict)
        cls = {"stasc.tracking.Wandb": Wandb, "stasc.tracking.Off": Off}[given.pop("_target_")]
        built[path.stem] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), given))
    assert built == {"off": Off(), "wandb": Wandb("stasc", None, "auto", [], 32)}
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


class FakeWandb(types.ModuleType):
    """Stands in for wandb: records what it is given, and fails where it is told to."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.mode, self.logged_in, self.calls = "online", True, []  # type: ignore[var-annotated]
        self.fail: dict[str, Exception] = {}
        self.hangs = ""  # the call that does not return
        self.released = threading.Event()
        self.url = "https://wandb.example/run"
        self.summary = types.SimpleNamespace(update=self._call("summary"))
        for name in ("define_metric", "log", "finish", "teardown"):
            setattr(self, name, self._call(name))

    def _call(self, name: str) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            self.calls.append((name, args, kwargs))
            self._hang(name)
            if name in self.fail:
                raise self.fail[name]

        return call

    def _hang(self, name: str) -> None:
        if name == self.hangs:
            self.released.wait()

    def Settings(self, **given: Any) -> dict[str, Any]:
        return given

    def Table(self, columns: list[str], data: list[list[Any]]) -> dict[str, Any]:
        return {"columns": columns, "data": data}

    def setup(self, given: dict[str, Any]) -> Any:
        self.mode = given.get("mode", self.mode)
        return types.SimpleNamespace(settings=types.SimpleNamespace(mode=self.mode))

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify
        return self.logged_in

    def init(self, **given: Any) -> FakeWandb:
        self.calls.append(("init", (), given))
        self._hang("init")
        self.dir = str(Path(given["dir"]) / "wandb" / "offline-run-1" / "files")
        if f"init {given['mode']}" in self.fail:
            raise self.fail[f"init {given['mode']}"]
        return self

    def modes(self) -> list[str]:
        return [given["mode"] for name, _, given in self.calls if name == "init"]

    def rows(self) -> list[dict[str, Any]]:
        return [args[0] for name, args, _ in self.calls if name == "log"]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[FakeWandb]:
    caplog.set_level(logging.INFO)
    importlib.import_module("wandb")  # now: a call that was left behind must not do it beside a later test
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake
    fake.released.set()


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
    assert warnings_in(caplog) == ["W&B can't be reached (TimeoutError: no answer to ***); going on offline"]
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
        "W&B failed (ConnectionResetError: gone); the run goes on without it, journal.jsonl has it all"
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
    assert given == {"status": "finished", "final/init_acc": 0.5, "final/corr_acc": 0.75, "final/gain": 0.5}


def goes_on(folder: Path, last: int, killed_at: int | None = None) -> None:
    """A run in the folder that does, or does again, all iterations to the last; a kill leaves one without its note."""
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


# W&B, for real, offline


def records_of(run: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in a run's file."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    return [json.loads(line) for line in found.stdout.splitlines()]


def only(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


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
            "sampling": {"n_init": 2}, "store": {"url": "s3://***"}, "hf_token": "***", "variant": "EIE", "seed": seed
        }  # fmt: skip
        history = [record["item"] for record in only(records, "history")]
        assert [(row["iteration"], row["test/corr_acc"]) for row in history] == [(0, 0.25), (1, 0.75)]
        assert history[1]["finetune/loss"] == 0.25 and history[1]["pairs.nrows"] == 4
        assert {"glob_name": "*", "step_metric": "iteration"}.items() <= only(records, "metric")[1].items()
        final = {name: value for part in only(records, "summary") for name, value in part["update"].items()}
        expected = {"final/init_acc": 0.5, "final/corr_acc": 0.75, "final/gain": 0.5}
        assert expected.items() <= final.items() and final["status"] == ("failed" if code else "finished")
        assert only(records, "exit") == [{"exit_code": code}] if code else len(only(records, "exit")) == 1

    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]
    assert not [path for path in files if path.is_relative_to(tmp_path / "home")]


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
    """So the row whose arrival a killed run could not note is there once."""
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
    """The process of W&B's service."""
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


# A run rebuilt from its folder


def recorded(folder: Path, last: int = 2, config: Mapping[str, Any] | None = None) -> Path:
    """The folder of a run that W&B never saw."""
    folder.mkdir(parents=True)
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, Nothing(), 1.0)
        run.begin(name="EIE-seed3", group="sweep", config=config or {"seed": 3, "tracking": {"_target_": "Off"}})
        pairs = pairs_of(3)
        for n in range(last + 1):
            trained = pairs if n else []
            run.iteration(Iteration(n, None, trained, trained[n:], [replace(pairs[0], r2=n / 2)]), None, {})
        run.end("finished")
    return folder


def test_a_rebuilt_run_is_the_run_as_it_was(fake: FakeWandb, tmp_path: Path) -> None:
    """What W&B is given by a rebuilt run, and by the run itself, differs in the id and the place alone."""
    config = {"seed": 3, "tracking": {"_target_": "stasc.tracking.Wandb", "tags": ["a"], "sample_pairs": 2}}
    sync_main(["sync", str(recorded(tmp_path / "run", config=config)), "--project", "other", "--entity", "team"])
    (given,) = [kwargs for name, _, kwargs in fake.calls if name == "init"]
    assert {name: given[name] for name in ("name", "group", "job_type", "config", "tags", "project", "entity")} == {
        "name": "EIE-seed3",
        "group": "sweep",
        "job_type": "EIE",
        "config": {**config, "variant": "EIE", "seed": 3},
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
    assert summary == {"status": "finished", "final/init_acc": 0.0, "final/corr_acc": 1.0, "final/gain": 1.0}
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
        journal.write("run_started", name="EIE-seed3", group="later", variant="EIE", seed=3, config={})
        journal.write("iteration", **summary_of(1, 0.75))
    sync_main(["sync", str(folder)])
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
    code = (
        "import sys, runpy; sys.argv[1:] = ['sync', '--help']\n"
        "try: runpy.run_module('stasc.tracking', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'wandb', 'torch', 'hydra'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "RUN_DIR" in answer.stdout
