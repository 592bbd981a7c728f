"""`python -m stasc.store`: what it lists, what it finds damaged, and what it removes."""

from __future__ import annotations

import re
import shutil
from functools import cache
from pathlib import Path

import pytest
from fake_lm import fake_experiment, results, run_fake, use_fakes
from filelock import Timeout
from test_store import computed, files, flip

from stasc.machine.sealed import digest, read_sealed, write_sealed
from stasc.runs import execute as runner
from stasc.runs import prepare
from stasc.store import housekeeping, leases
from stasc.store.artifacts import KINDS, OtherVersion, Store
from stasc.sweeps import foresee
from stasc.tracking import read

composed = cache(fake_experiment)
OURS, OTHER = ("filter=lenient",), ("filter=strict",)  # they share what M_0 answers


def command(folder: Path, *arguments: str) -> int:
    return housekeeping.main(["--dir", str(folder / "store"), *arguments])


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """Holds two finished runs, `ours` and `other`, and their store."""
    use_fakes(monkeypatch, folder / "base")
    run_fake(composed(*OURS), folder / "ours")
    run_fake(composed(*OTHER), folder / "other")
    return folder


def artifacts(folder: Path) -> set[str]:
    places = [*KINDS, "unfinished"]
    return {f"{place}/{path.name}" for place in places for path in (folder / "store" / place).glob("*")}


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_list_counts_and_adds_up(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = sorted((shared / "store" / "filter").iterdir())[:2]
    one.rename(one.with_name(f"{one.name}.corrupt-1"))
    (shared / "store" / "unfinished").mkdir(exist_ok=True)
    two.rename(shared / "store" / "unfinished" / f"filter-{two.name}")
    shutil.rmtree(shared / "other")
    for name in ("later", "sweep/job"):  # the folder of a sweep is made when its first job starts
        leases.write(Store(shared / "store", {}), leases.Lease(f"{shared}/{name}", "", "expected", "last", (), ""))
    assert command(shared, "list") == 0
    out = capsys.readouterr().out
    rows = re.findall(r"^ +(\w[\w ]*?) +(\d+) +([\d.]+) KiB", out, re.MULTILINE)
    listed = {name: (int(count), float(size)) for name, count, size in rows}
    assert list(listed) == [*KINDS, "quarantined", "unfinished", "total"]
    for kind in KINDS:
        whole = [path for path in (shared / "store" / kind).iterdir() if "." not in path.name]
        assert listed[kind] == (len(whole), pytest.approx(sum(map(size_of, whole)) / 1024, abs=0.06))
    assert listed["quarantined"][0] == listed["unfinished"][0] == 1
    places = [shared / "store" / place for place in (*KINDS, "unfinished")]
    everything = [path for place in places for path in place.iterdir()]
    assert listed["total"] == (len(everything), pytest.approx(sum(map(size_of, everything)) / 1024, abs=0.06))
    assert out.splitlines()[-5:] == [
        "and is used by",
        f"  {shared}/later (expected)",
        f"  {shared}/other (done, but the folder is gone)",
        f"  {shared}/ours (done)",
        f"  {shared}/sweep/job (expected)",
    ]


def test_list_tells_what_became_of_runs_that_are_not_done(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, error in (
        ("failed", OSError),
        ("interrupted", KeyboardInterrupt),
        ("killed", OSError),
        ("alive", OSError),
    ):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(runner.publish, "save_model", lambda *_, error=error: (_ for _ in ()).throw(error()))
            run_fake(composed(*OURS), shared / name)
    for name in ("killed", "alive"):
        summary = shared / name / "summary.json"
        summary.write_text(summary.read_text().replace('"status": "failed"', '"status": "running"'))
    with Store(shared / "store", {}).lock("run", digest(str(shared / "alive"))):
        assert command(shared, "list") == 0
    said = dict(re.findall(r"^  .*/(\w+) \((\w+)\)$", capsys.readouterr().out, re.MULTILINE))
    assert said == {
        "alive": "running",
        "failed": "failed",
        "interrupted": "interrupted",
        "killed": "killed",
        "other": "done",
        "ours": "done",
    }


def test_verify_sets_aside_what_is_damaged_and_says_so_by_its_status(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, expected = len(artifacts(shared)), results(shared / "other")
    assert command(shared, "verify") == 0
    assert capsys.readouterr().out == f"{before} artifacts whole, 0 damaged\n"
    victims = [sorted((shared / "store" / kind).iterdir())[0] for kind in KINDS]
    for victim in victims:
        flip(files(victim)[0])
    assert command(shared, "verify") == 1
    assert capsys.readouterr().out == f"{before - 6} artifacts whole, 6 damaged and quarantined\n"
    assert all(victim.with_name(f"{victim.name}.corrupt-1").is_dir() for victim in victims)
    assert command(shared, "verify") == 0
    (shared / "other" / "summary.json").unlink()
    assert run_fake(composed(*OTHER), shared / "other") == expected


def test_clean_removes_what_only_a_deleted_run_folder_referred_to(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stays is what the other run alone would have made."""
    expected = run_fake(composed(*OTHER), shared / "alone" / "other")
    both, alone = artifacts(shared), artifacts(shared / "alone")
    assert alone < both
    assert command(shared, "clean") == 0
    assert capsys.readouterr().out.endswith(
        f"removed 0 artifacts, 0 B, that no run folder refers to; {len(both)} stay\n"
    )
    assert artifacts(shared) == both

    shutil.rmtree(shared / "ours")
    assert command(shared, "clean", "--dry-run") == 0
    would = capsys.readouterr().out
    assert artifacts(shared) == both
    assert len(list((shared / "store" / "leases").iterdir())) == 2

    size = size_of(shared / "store")
    assert command(shared, "clean") == 0
    assert would == capsys.readouterr().out.replace("removed", "would remove")
    assert re.match(rf"would remove {len(both) - len(alone)} artifacts, [\d.]+ KiB, .*; {len(alone)} stay$", would)
    assert size - size_of(shared / "store") > 1024
    assert artifacts(shared) == alone
    assert len(list((shared / "store" / "leases").iterdir())) == 1

    (shared / "other" / "summary.json").unlink()
    assert run_fake(composed(*OTHER), shared / "other") == expected
    assert computed(shared / "other") == set()


def test_clean_removes_what_is_quarantine_orphaned_or_half_removed(shared: Path) -> None:
    store, before = shared / "store", artifacts(shared)
    key = "0" * 64
    for left in (f"model/{key}.corrupt-1", f"filter/.tmp-7-{key}", f"unfinished/initial-{key}", f"initial/{key}"):
        (store / left / "weights").mkdir(parents=True)
        (store / left / "weights" / "x").write_text("x")
    kept = sorted((store / "initial").iterdir())[-1]
    shutil.copytree(kept, kept.with_name(f"{kept.name}.corrupt-2"))
    work = store / "unfinished" / f"initial-{kept.name}"  # of a run whose folder is there
    shutil.copytree(kept, work)
    assert command(shared, "clean") == 0
    assert artifacts(shared) == before | {f"unfinished/{work.name}"}


def test_clean_leaves_alone_what_a_run_is_computing(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, alone = Store(shared / "store", {}), artifacts(shared)
    key = "0" * 64
    for left in (f"unfinished/initial-{key}", f"initial/{key}.corrupt-1"):
        (store.root / left).mkdir(parents=True)
    with store.lock("initial", key):
        assert command(shared, "clean") == 0
    out = capsys.readouterr().out
    assert artifacts(shared) == alone | {f"unfinished/initial-{key}", f"initial/{key}.corrupt-1"}
    assert f"{len(alone) + 2} stay, 2 of them because a run holds them now" in out
    assert command(shared, "clean") == 0
    assert artifacts(shared) == alone


def test_clean_keeps_what_a_sweep_still_expects_while_its_folder_exists(shared: Path) -> None:
    before, sweep = artifacts(shared), shared / "sweep"
    sweep.mkdir()
    expected = runner.replace(composed(*OURS), store=runner.replace(composed().store, dir=str(shared / "store")))
    foresee.expect(prepare.prepare(expected), sweep / "job")
    shutil.rmtree(shared / "ours")
    assert command(shared, "clean") == 0
    assert artifacts(shared) == before
    sweep.rmdir()
    assert command(shared, "clean") == 0
    assert artifacts(shared) < before


def test_clean_keeps_what_an_interrupted_run_has_computed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner.publish, "save_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_fake(composed("seed=1"), shared / "interrupted")
    assert command(shared, "clean") == 0
    run_fake(composed("seed=1"), shared / "interrupted")
    assert computed(shared / "interrupted") == set()


def test_without_a_store_there_is_nothing_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["list"], ["verify"], ["clean"]):
        assert command(folder, *arguments) == 0
        assert capsys.readouterr().out == f"{folder}/store: there is no store\n"
    assert list(folder.iterdir()) == []


def test_the_store_of_the_settings_is_the_default(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STASC_STORE", str(shared / "store"))
    assert housekeeping.main(["verify"]) == 0
    assert f"{len(artifacts(shared))} artifacts whole" in capsys.readouterr().out


def test_clean_removes_the_files_of_locks_that_nobody_holds(shared: Path) -> None:
    store = Store(shared / "store", {})
    locks = shared / "store" / "locks"
    assert len(list(locks.iterdir())) > 10
    with store.lock("filter", "0" * 64):
        assert command(shared, "clean", "--dry-run") == 0
        assert len(list(locks.iterdir())) > 10
        assert command(shared, "clean") == 0
        assert [path.name for path in locks.iterdir()] == [f"filter-{'0' * 64}"]
        with pytest.raises(Timeout), store.lock("filter", "0" * 64, wait=False):
            pass
    run_fake(composed(*OURS, "evaluation.temperature=0.1"), shared / "later")


@pytest.mark.parametrize("words", [("list",), ("clean",), ("clean", "--dry-run")])
def test_a_lease_of_another_version_is_an_error_of_one_line(
    words: tuple[str, ...], shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((shared / "store" / "leases").glob("*.json"))
    write_sealed(path, {**read_sealed(path), "schema": 3})
    before = artifacts(shared)
    assert command(shared, *words) == 1
    assert capsys.readouterr().err.startswith(f"error: {path} has schema 3")
    assert artifacts(shared) == before
    with pytest.raises(OtherVersion):
        run_fake(composed(*OURS, "seed=1"), shared / "later")
    assert not list(read(shared / "later" / "journal.jsonl"))[1:-1], "before anything is sampled"


def test_clean_needs_no_locks(shared: Path) -> None:
    shutil.rmtree(shared / "store" / "locks")
    assert command(shared, "clean") == 0
