"""A disk that is full, or that cannot be written to, is named and loses nothing; what will not fit is refused."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from fake_lm import FakeLive, fake_experiment, results, run_fake, use_fakes
from faults import announce
from privileges import permissions_hold
from test_run import EARNABLE, TINY, experiment, run_tiny, stasc

from stasc import tracking
from stasc.machine import durable
from stasc.runs import disk
from stasc.runs.execute import run
from stasc.runs.prepare import prepare
from stasc.store import housekeeping
from stasc.store.artifacts import KINDS
from stasc.tracking.console import Console

composed = cache(fake_experiment)


def limited(size: int) -> Callable[[], None]:
    """Lets no file of a process grow beyond so many bytes."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_weights_that_do_not_fit_end_the_command_with_status_74_and_it_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors writes them, in Rust, whose errors are no OSErrors."""
    settings = ("filter=lenient", "iterations=1")
    run_tiny(tmp_path / "whole", *settings)

    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests / 'cli'}", prepend=os.pathsep)
    folder, store = tmp_path / "limited", tmp_path / "limited.store"
    answer = stasc(
        tmp_path,
        *(*TINY, *EARNABLE, *settings, f"hydra.run.dir={folder}", f"store.dir={store}"),
        preexec_fn=limited(100_000),
    )
    assert answer.returncode == os.EX_IOERR, answer.stderr
    (said,) = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(rf"File too large; \d+ bytes are free there: '{store}/unfinished/model-", said)
    assert housekeeping.main(["--dir", str(store), "verify"]) == 0
    done = len([path for kind in KINDS for path in (store / kind).glob("*")])
    assert done == 6, "sampled, corrected and scored: the test questions with M_0, the training questions"

    run(experiment(*EARNABLE, *settings, f"store.dir={store}"), folder, "group", Console())
    events = list(tracking.read(folder / "journal.jsonl"))
    reused = [event["kind"] for event in events if event["event"] == "stage" and event["reused"]]
    assert len([kind for kind in reused if kind != "model"]) == done
    assert results(folder) == results(tmp_path / "whole")


@pytest.mark.parametrize("size", [100, 500, 1500, 3000, 9000])
def test_a_limit_of_any_size_is_named_with_path_and_bytes_and_loses_nothing(
    size: int, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use_fakes(monkeypatch, folder / "base")
    whole = run_fake(composed(), folder / "whole" / "run")
    said, says = os.pipe()
    child = os.fork()
    if not child:
        limited(size)()
        try:
            run_fake(composed(), folder / "limited" / "run")
        except OSError as error:
            os.write(says, f"{durable.is_full(error)} {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(says)
    message = os.read(said, 10_000).decode()
    os.close(said)
    assert re.match(rf"True .*File too large; \d+ bytes are free there: '{folder}/limited/", message)
    assert housekeeping.main(["--dir", str(folder / "limited" / "store"), "verify"]) == 0
    assert run_fake(composed(), folder / "limited" / "run") == whole


def test_what_a_failed_write_took_is_free_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(step: str, path: Path) -> None:
        if step == "half-written":
            raise OSError(errno.ENOSPC, "No space left on device")

    announce(monkeypatch, full)
    with pytest.raises(OSError, match=rf"No space left on device; \d+ bytes are free there: '{folder}/a'"):
        durable.write(folder / "a", b"0123456789")
    assert list(folder.iterdir()) == []


def test_an_event_that_did_not_get_to_the_disk_is_in_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with tracking.Journal(tmp_path / "journal.jsonl") as journal:
        journal.write("first")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match=rf"bytes are free there: '{tmp_path}/journal\.jsonl'"):
                journal.write("second")
        journal.write("third")
    assert [event["event"] for event in tracking.read(tmp_path / "journal.jsonl")] == ["first", "third"]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.ENOSPC, "No space left on device", "/some/where", None, "/else/where"), True),
        (RuntimeError("Error while serializing: I/O error: File too large (os error 27)"), True),
        (RuntimeError("I/O error: No such file or directory (os error 2)"), False),
        (OSError(errno.EACCES, "Permission denied"), False),
        (ValueError("28"), False),
    ],
)
def test_an_error_of_the_disk_is_named_whoever_raised_it_and_others_are_left_alone(
    error: Exception, named: bool, tmp_path: Path
) -> None:
    with pytest.raises(type(error) if not named else OSError) as raised, durable.naming(tmp_path / "a"):
        raise error
    assert (raised.value is error) is not named
    if named:
        assert durable.is_full(raised.value)
        assert re.search(rf"; \d+ bytes are free there: '{tmp_path}/a'", str(raised.value))
        with pytest.raises(OSError, match=r"/a'$"), durable.naming(tmp_path / "b"):  # named once
            raise raised.value


def test_a_store_that_cannot_be_written_to_is_named_by_its_setting(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use_fakes(monkeypatch, folder / "base")

    def read_only(step: str, path: Path) -> None:
        if path.is_relative_to(folder / "store"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    announce(monkeypatch, read_only)
    with pytest.raises(OSError, match=rf"store\.dir={folder}/store: Read-only file system.*set store\.dir") as raised:
        run_fake(composed(), folder / "run")
    assert durable.is_full(raised.value)


@pytest.mark.parametrize("there", [True, False])
def test_a_store_without_permission_is_named_by_its_setting(
    there: bool, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    use_fakes(monkeypatch, folder / "base")
    FakeLive(folder / "base")
    (folder / "run").mkdir()
    store = folder / "store" if there else folder
    store.mkdir(exist_ok=True)
    store.chmod(0o500)
    try:
        with permissions_hold(), pytest.raises(OSError, match=rf"store\.dir={folder}/store: Permission denied; set"):
            run_fake(composed(), folder / "run")
    finally:
        store.chmod(0o700)


def test_a_store_that_is_a_file_is_named_by_its_setting(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    use_fakes(monkeypatch, folder / "base")
    (folder / "store").write_text("")
    with pytest.raises(OSError, match=rf"store\.dir={folder}/store: File exists; set store\.dir"):
        run_fake(composed(), folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("finetune", "keep"), [("full", "last"), ("lora", "all")])
def test_the_room_that_is_asked_for_is_what_the_weights_take_at_most(
    finetune: str, keep: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    estimates, held = [], [0]

    def estimate(*arguments: Any) -> int:
        estimates.append(real(*arguments))
        return estimates[0]

    def look(step: str, path: Path) -> None:
        held.append(sum(file.stat().st_size for file in (folder / "run.store").rglob("*.safetensors")))

    real = disk.weights_bytes
    monkeypatch.setattr(disk, "weights_bytes", estimate)
    announce(monkeypatch, look)
    summary = run_tiny(
        folder / "run", f"finetune={finetune}", f"store.keep_models={keep}", "filter=lenient", "iterations=3"
    )
    assert summary["status"] == "finished"
    assert estimates[0] == pytest.approx(max(held), rel=0.2)
    models = max(held) / held[-1] if keep == "last" else max(held) / (held[-1] / 3)
    assert round(models) == {"last": 2, "all": 3}[keep]


@pytest.mark.parametrize(("keep", "advice"), [("last", ""), ("all", ", or store.keep_models=last")])
def test_a_run_that_will_not_fit_is_refused_before_anything_is_sampled(
    keep: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(durable, "free", lambda path: 3 * 2**20)
    built = experiment(f"store.dir={tmp_path / 'store'}", f"store.keep_models={keep}")
    expected = (
        rf"store\.dir={tmp_path}/store: this run needs about 50\.\d MiB there, and 3\.0 MiB are free: "
        rf"free some space \(python -m stasc\.store clean\), or set store\.dir to another disk{re.escape(advice)}$"
    )
    with pytest.raises(OSError, match=expected) as refused:
        run(built, tmp_path, "group", Console())
    assert durable.is_full(refused.value), "it has the exit status of a full disk"
    assert {path.name for path in (tmp_path / "store").iterdir()} <= {"digests.json", "locks"}
    assert not (tmp_path / "summary.json").exists()


def test_the_copy_of_the_final_model_needs_room_beside_the_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(disk, "_check_free", lambda name, path, need, advice: needed.append(need))
    prepared = prepare(experiment("iterations=3", f"store.dir={tmp_path / 'store'}"))
    lease, tune, live = prepared.lease(tmp_path, "expected"), prepared.experiment.finetune, prepared.live
    disk.check(tmp_path / "store", tune, live, lease)
    one = disk.model_bytes(Path(live.base), tune, live.training_dtype)
    assert needed == [2 * one + one + disk._MARGIN], "M_{n-1}, M_n and the copy"


def test_weights_that_have_to_be_derived_again_need_room_too(tmp_path: Path) -> None:
    """M_3 of a longer run is trained from M_2 of a shorter one, which comes from M_1."""
    given = [*EARNABLE, "filter=lenient", f"store.dir={tmp_path / 'store'}"]
    run_tiny(tmp_path / "short", *given, "iterations=2")
    longer = prepare(experiment(*given, "iterations=3"))
    lease = longer.lease(tmp_path / "longer", "expected")

    def room() -> int:
        return disk.weights_bytes(tmp_path / "store", longer.experiment.finetune, longer.live, lease)

    assert (one := room()) > 0, "for M_3"
    (m_2,) = (tmp_path / "store" / "model").iterdir()
    shutil.rmtree(m_2)
    assert room() == 3 * one


def test_a_run_folder_on_another_disk_needs_room_for_the_final_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    if folder.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs /dev/shm and the temporary folder on two file systems")
    monkeypatch.setattr(durable, "free", lambda path: 3 * 2**20 if path == folder else 2**40)
    expected = (
        rf"^\[Errno 28\] {folder}: this run needs about 50\.\d MiB there, and 3\.0 MiB are free: free some space, "
        "or write"
    )
    with pytest.raises(OSError, match=expected):
        run(experiment(f"store.dir={tmp_path / 'store'}"), folder, "group", Console())
    run(experiment(f"store.dir={tmp_path / 'store'}", "iterations=0"), tmp_path, "group", Console())
