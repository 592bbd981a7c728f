"""What is damaged is never used, and processes that share a store do not disturb each other."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fake_lm import FakeEngine, fake_experiment, results, run_fake, use_fakes
from filelock import Timeout

from stasc import tracking
from stasc.machine import durable
from stasc.machine.sealed import Damaged, read_sealed, write_sealed
from stasc.store import housekeeping
from stasc.store.artifacts import COMMIT, KINDS, Artifact, OtherVersion, Store, committed

composed = cache(fake_experiment)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """The folder of a finished run, with its store beside it."""
    use_fakes(monkeypatch, folder / "base")
    run_fake(composed("store.keep_models=all"), folder / "run")
    return folder / "run"


@pytest.fixture
def expected(run: Path) -> dict[str, str]:
    """Its results, before anything is damaged: the model in the run's folder is the same file as that in the store."""
    return results(run)


def stages(run: Path) -> list[tuple[str, str, bool]]:
    """Kind, key and whether it was there already, of each stage that the journal tells of since the last start."""
    events = list(tracking.read(run / "journal.jsonl"))
    start = max(n for n, event in enumerate(events) if event["event"] == "run_started")
    return [(event["kind"], event["key"], event["reused"]) for event in events[start:] if event["event"] == "stage"]


def computed(run: Path) -> set[tuple[str, str]]:
    return {(kind, key) for kind, key, reused in stages(run) if not reused}


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---------------------------------------------------------------------------------------------------------- damage


def files(artifact: Path) -> list[Path]:
    """All but the commit, weights first."""
    found = [path for path in artifact.rglob("*") if path.is_file() and path.name != COMMIT]
    return sorted(found, key=lambda path: (path.suffix != ".safetensors", path))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    assert first != second
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit flipped": lambda artifact: flip(files(artifact)[0]),
    "cut short": lambda artifact: truncate(files(artifact)[0]),
    "zeros": lambda artifact: zero(files(artifact)[0]),
    "a file deleted": lambda artifact: files(artifact)[0].unlink(),
    "the last file deleted": lambda artifact: files(artifact)[-1].unlink(),
    "no commit": lambda artifact: (artifact / COMMIT).unlink(),
    "a bit of the commit flipped": lambda artifact: flip(artifact / COMMIT),
    "the commit cut short": lambda artifact: truncate(artifact / COMMIT),
    "all files deleted": lambda artifact: [path.unlink() for path in [*files(artifact), artifact / COMMIT]],
}


def run_again_and_check(
    run: Path, expected: dict[str, str], damaged: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A new run on the same store finds all that is damaged, quarantines it with a warning each, and gives the same."""
    again = run.with_name("again")
    assert run_fake(composed("store.keep_models=all"), again) == expected
    names = sorted(f"{artifact.parent.name}/{artifact.name}" for artifact in damaged)
    warnings = sorted(told(caplog))
    assert len(warnings) == len(names)
    for name, warning in zip(names, warnings, strict=True):
        assert warning.startswith(f"store: {name} is damaged (")
        assert warning.endswith(f"; quarantined as {name.partition('/')[2]}.corrupt-1")
    store = run.parent / "store"
    assert sorted(str(path.relative_to(store)) for path in store.glob("*/*.corrupt-*")) == [
        f"{name}.corrupt-1" for name in names
    ]
    for artifact in damaged:
        committed(artifact).verify()


def removed_later_stages(run: Path, intermediate: Path) -> None:
    """Removes what was computed with a model, so that its weights are read once more."""
    for kind in ("initial", "correction"):
        for artifact in (run.parent / "store" / kind).iterdir():
            if committed(artifact).made_of["model"] == intermediate.name:
                shutil.rmtree(artifact)


def of_kind(run: Path, kind: str) -> list[Path]:
    """The artifacts of a kind in the order in which the run came to them."""
    store = run.parent / "store"
    return [store / kind / key for key in dict.fromkeys(key for of, key, _ in stages(run) if of == kind)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", [*KINDS, "intermediate model"])
def test_damage_is_found_before_use_and_what_is_damaged_derived_again(
    kind: str, damage: str, run: Path, expected: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    if kind == "intermediate model":
        victim = of_kind(run, "model")[0]
        removed_later_stages(run, victim)
    else:
        victim = of_kind(run, kind)[-1]
    DAMAGES[damage](victim)
    run_again_and_check(run, expected, [victim], caplog)
    if kind != "intermediate model":
        assert computed(run.with_name("again")) == {(kind, victim.name)}


def swap_artifacts(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


SWAPS: dict[str, Callable[[Path, Path], None]] = {
    "files": lambda one, other: swap(files(one)[0], files(other)[0]),
    "artifacts": swap_artifacts,
}


@pytest.mark.parametrize("swapped", SWAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_swapped_between_artifacts_is_found(
    kind: str, swapped: str, run: Path, expected: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    one, other = of_kind(run, kind)[-2:]
    if kind == "model":
        removed_later_stages(run, one)
    SWAPS[swapped](one, other)
    run_again_and_check(run, expected, [one, other], caplog)


@pytest.mark.parametrize("kind", ["initial", "correction", "model"])
def test_files_of_an_artifact_that_were_swapped_are_found(
    kind: str, run: Path, expected: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    artifact = next(artifact for artifact in reversed(of_kind(run, kind)) if len(files(artifact)) > 1)
    swap(*files(artifact)[:2])
    run_again_and_check(run, expected, [artifact], caplog)


def test_every_bit_of_a_commit_counts(run: Path) -> None:
    artifact = of_kind(run, "finetune")[0]
    path, sound = artifact / COMMIT, committed(artifact)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with suppress(Damaged):
            assert committed(artifact) == sound, "another way to write the same JSON"


def test_what_is_damaged_a_second_time_gets_another_number(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    victim = of_kind(run, "filter")[0]
    for n in (1, 2, 3):
        flip(files(victim)[0])
        assert run_fake(composed("store.keep_models=all"), run.with_name(f"again-{n}")) == results(run)
    names = sorted(path.name for path in victim.parent.glob("*.corrupt-*"))
    assert names == [f"{victim.name}.corrupt-{n}" for n in (1, 2, 3)]
    assert len(told(caplog)) == 3


def spy(monkeypatch: pytest.MonkeyPatch, counter: Path, act: Callable[[], None] = lambda: None) -> None:
    """From now on, each batch that is sampled adds a line to a file, and does something before."""
    sample = FakeEngine.sample

    def counting(self: FakeEngine, *arguments: Any) -> Any:
        act()
        with counter.open("a") as file:
            file.write("batch\n")
        return sample(self, *arguments)

    monkeypatch.setattr(FakeEngine, "sample", counting)


def batches(counter: Path) -> int:
    return counter.read_text().count("batch") if counter.exists() else 0


@pytest.mark.parametrize("damage", [flip, truncate, zero, Path.unlink])
def test_a_damaged_chunk_of_unfinished_work_is_sampled_again_and_a_whole_one_is_not(
    damage: Callable[[Path], None], run: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = next(artifact for artifact in of_kind(run, "initial") if len(files(artifact)) > 1)
    work = run.parent / "store" / "unfinished" / f"initial-{artifact.name}"
    shutil.move(artifact, work)
    damage(files(work)[0])
    spy(monkeypatch, run.parent / "counter")
    assert run_fake(composed("store.keep_models=all"), run.with_name("again")) == results(run)
    assert batches(run.parent / "counter") == 1
    assert told(caplog) == []


def test_an_artifact_of_another_version_is_refused_by_name_and_left_alone(
    run: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = of_kind(run, "correction")[0]
    write_sealed(artifact / COMMIT, {**read_sealed(artifact / COMMIT), "schema": 3})
    before = (artifact / COMMIT).read_bytes()
    expected = rf"{artifact} has schema 3, and this version of stasc reads 2: set store\.dir to another folder"
    with pytest.raises(OtherVersion, match=expected):
        run_fake(composed("store.keep_models=all"), run.with_name("again"))
    assert housekeeping.main(["--dir", str(run.parent / "store"), "verify"]) == 1
    assert f"{artifact} has schema 3" in capsys.readouterr().out
    assert (artifact / COMMIT).read_bytes() == before
    assert told(caplog) == []


def test_what_others_put_into_the_store_is_left_alone(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = run.parent / "store"
    foreign = [store / "notes" / "a.txt", store / "model" / "mine" / "model.safetensors", store / "filter" / "a.json"]
    foreign += [store / "unfinished" / "mine" / "a.txt", store / "initial" / "mine.corrupt-1" / "a.txt"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert run_fake(composed("store.keep_models=all"), run.with_name("again")) == results(run)
    assert computed(run.with_name("again")) == set()
    shutil.rmtree(run)
    shutil.rmtree(run.with_name("again"))
    for command in ("list", "verify", "clean"):
        assert housekeeping.main(["--dir", str(store), command]) == 0
    assert [path.read_text() for path in foreign] == ["mine"] * len(foreign)
    assert [path for kind in KINDS for path in (store / kind).iterdir() if len(path.name) > 60] == []
    assert told(caplog) == []


# ----------------------------------------------------------------------------- other files that can be damaged


@pytest.mark.parametrize("damage", [flip, truncate, zero, lambda path: path.write_text("[]")])
def test_a_damaged_lease_is_quarantine_and_written_again(
    damage: Callable[[Path], None], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (lease,) = (run.parent / "store" / "leases").iterdir()
    before = lease.read_bytes()
    damage(lease)
    assert run_fake(composed("iterations=1"), run.with_name("other"))
    (warning,) = told(caplog)
    assert f"the lease {lease.name} is damaged" in warning and f"quarantined as {lease.name}.corrupt-1" in warning
    (run / "summary.json").unlink()
    run_fake(composed("store.keep_models=all"), run)
    assert lease.read_bytes() == before


def test_a_lease_that_is_being_written_is_not_read(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run.parent / "store" / "leases" / ".tmp-1-0123456789abcdef.json").write_text("{")
    run_fake(composed("iterations=1"), run.with_name("other"))
    assert told(caplog) == []


@pytest.mark.parametrize("damage", [flip, truncate, zero])
def test_damaged_digests_are_quarantine_and_the_model_is_read_again(
    damage: Callable[[Path], None], run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would be taken for another model, and this for another run."""
    digests = run.parent / "store" / "digests.json"
    before = set(read_sealed(digests).values())
    damage(digests)
    assert run_fake(composed("store.keep_models=all"), run.with_name("again")) == results(run)
    assert computed(run.with_name("again")) == set()
    (warning,) = told(caplog)
    assert "digests.json" in warning and "quarantined as digests.json.corrupt-1" in warning
    assert set(read_sealed(digests).values()) == before


@pytest.mark.parametrize("line", [0, 5, -1])
@pytest.mark.parametrize("complete", [True, False])
def test_a_damaged_journal_is_quarantine_and_the_run_gone_through_again(
    line: int, complete: bool, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, journal = results(run), run / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line][:40] + bytes([lines[line][40] ^ 1]) + lines[line][41:]
    journal.write_bytes(b"".join(lines))
    if not complete:
        (run / "summary.json").unlink()
    assert run_fake(composed("store.keep_models=all"), run) == expected
    (warning,) = told(caplog)
    assert "does not match its checksum" in warning and "quarantined as journal.jsonl.corrupt-1" in warning
    assert (run / "journal.jsonl.corrupt-1").exists()
    assert stages(run) and computed(run) == set()
    caplog.clear()
    assert run_fake(composed("store.keep_models=all"), run) == expected
    assert told(caplog) == []


# --------------------------------------------------------------------------------------------------------- sharing


def forked(work: Callable[[], object]) -> int:
    """Does it in a process of its own, which ends with 0 if it went well. Returns: the process's id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_of_four_processes_that_share_a_store_each_stage_is_computed_once(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use_fakes(monkeypatch, folder / "base")
    experiment = composed()
    with monkeypatch.context() as patch:
        spy(patch, folder / "alone.counter")
        expected = run_fake(experiment, folder / "alone" / "run")
    once = dict.fromkeys(computed(folder / "alone" / "run"), 1)
    assert len(once) > 15
    spy(monkeypatch, folder / "counter", lambda: time.sleep(0.002))
    for repeat in range(20):
        here = folder / str(repeat)
        runs = [here / name for name in "abcd"]
        children = [forked(lambda run=run: run_fake(experiment, run)) for run in runs]
        assert [ended(child) for child in children] == [0] * 4
        assert [results(run) for run in runs] == [expected] * 4
        counted = Counter((kind, key) for run in runs for kind, key, reused in stages(run) if not reused)
        assert counted == once, repeat
        shutil.rmtree(here)
    assert batches(folder / "counter") == 20 * batches(folder / "alone.counter")


def test_when_the_holder_of_a_lock_is_killed_another_takes_over(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    use_fakes(monkeypatch, folder / "base")
    experiment = composed()
    expected = run_fake(experiment, folder / "alone" / "run")
    started = folder / "started"

    def hang() -> None:
        started.touch()
        time.sleep(60)

    def hold() -> None:
        spy(monkeypatch, folder / "counter", hang)
        run_fake(experiment, folder / "a")

    holder = forked(hold)
    while not started.exists():
        time.sleep(0.01)
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.perf_counter())
        os.kill(holder, signal.SIGKILL)

    timer = threading.Timer(0.7, kill)
    timer.start()
    assert run_fake(experiment, folder / "b") == expected
    assert killed, "it waited for the holder"
    assert time.perf_counter() - killed[0] < 5
    assert ended(holder) == -signal.SIGKILL


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", {})


KEY = "0" * 64


def write_x(work: Path) -> None:
    (work / "x").write_text("x")


def read_x(artifact: Artifact) -> bytes:
    return artifact.read("x")


def derived(store: Store, kind: str = "filter", key: str = KEY, **parts: Any) -> bytes:
    given: Mapping[str, Any] = {"made_of": {}, "inputs": dict, "compute": write_x, "read": read_x, **parts}
    return store.derive(kind, key, **given)[1]


def test_a_reader_waits_for_no_writer(store: Store) -> None:
    derived(store)
    began = time.perf_counter()
    with store.lock("filter", KEY), store.lock("filter", "1" * 64):
        assert derived(store) == b"x"  # what is there
        assert derived(store, key="2" * 64) == b"x"  # what another process is not computing
    assert time.perf_counter() - began < 1


def test_a_writer_waits_for_no_reader(store: Store) -> None:
    derived(store)

    def read(artifact: Artifact) -> bytes:
        with store.lock("filter", KEY, wait=False):
            store.remove("filter", KEY)
            return derived(Store(store.root, {}), key="1" * 64)

    assert derived(store, read=read) == b"x"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_by_the_name_of_the_setting(
    number: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    expected = (
        r"store\.dir=.*: its file system has no locks .* set store\.dir or STASC_STORE to a folder on a local disk"
    )
    with pytest.raises(OSError, match=expected), store.lock("filter", KEY):
        pass


def test_a_store_that_cannot_be_written_is_named(store: Store) -> None:
    store.root.mkdir(exist_ok=True)
    (store.root / "locks").write_text("a file")
    expected = r"store\.dir=.*: File exists; set store\.dir or STASC_STORE to a folder of yours"
    with pytest.raises(OSError, match=expected), store.lock("filter", KEY):
        pass


def test_a_lock_that_is_held_can_be_asked_for_without_waiting(store: Store) -> None:
    with store.lock("filter", KEY), pytest.raises(Timeout), store.lock("filter", KEY, wait=False):
        pass


def test_who_waited_reads_what_the_other_computed(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    heard: list[bool] = []
    waiting = replace(store, watch=lambda artifact, reused: heard.append(reused))
    done = threading.Event()

    def wait() -> None:
        derived(waiting)
        done.set()

    with store.lock("filter", KEY):
        thread = threading.Thread(target=wait)
        thread.start()
        assert not done.wait(0.5)
        store._compute("filter", KEY, {}, dict, write_x)
    thread.join(5)
    assert heard == [True]
    assert [message for message in caplog.messages if "waiting for it" in message]


def test_damage_that_another_process_has_mended_meanwhile_is_not_quarantine(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Two find the same damage; the second must not rename what the first has derived again."""
    derived(store)
    flip(store.root / "filter" / KEY / "x")
    reads: Iterator[int] = iter(range(10))

    def read(artifact: Artifact) -> bytes:
        if next(reads) == 0:
            with pytest.raises(Damaged):
                artifact.read("x")
            assert derived(store) == b"x"  # by another process
            raise Damaged("as it was")
        return artifact.read("x")

    assert derived(store, read=read, compute=lambda work: pytest.fail("it is there")) == b"x"
    assert len(told(caplog)) == 1


def test_a_disk_that_damages_what_is_written_is_an_error(store: Store) -> None:
    def read(artifact: Artifact) -> bytes:
        raise Damaged("x does not match its checksum")

    with pytest.raises(OSError, match=r"filter/0+: x does not match its checksum, just written; is the disk failing"):
        derived(store, read=read)


def test_a_copy_is_whole_where_the_system_call_copies_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As copy_file_range does on some network file systems."""
    (tmp_path / "old").write_bytes(b"weights" * 100)
    monkeypatch.setattr(os, "copy_file_range", lambda *arguments: 0)
    durable.clone(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == b"weights" * 100
