"""A start continues after the last row in the W&B files of earlier starts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tracked import info_of, lines_of, outcomes_of, settings, step_of, summary_of

from stasc.tracking import earlier
from stasc.tracking.earlier import EarlierStarts, earlier_starts


def loss(n: int, number: int) -> float:
    """Returns a loss whose digits no other row has."""
    return 70_000.25 + 100 * n + number


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an offline run of 3 iterations with 10 optimizer steps each, without tables."""
    folder = tmp_path_factory.mktemp("offline") / "run"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_ERROR_REPORTING", "false")
        tracker = settings(mode="offline", table_rows=0).start(info_of(folder))
        for n in range(4):
            for number in range(1, 11 if n else 1):
                tracker.step(n, step_of(loss(n, number)))
            tracker.iteration(summary_of(n, 0.5), lines_of(1, n=n), outcomes_of([1], n))
        assert tracker.finish("finished", None)
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return file


def made(folder: Path, start: str, run_id: str, written: int) -> Path:
    """Returns an empty file of a start, last written at this time."""
    file = folder / "wandb" / f"{start}-{run_id}" / f"run-{run_id}.wandb"
    file.parent.mkdir(parents=True)
    file.touch()
    os.utime(file, (written, written))
    return file


def test_the_next_step_follows_the_last_row(offline: Path) -> None:
    assert EarlierStarts((offline,)).next_step() == 3 * 10 + 2 * 3 + 1


@pytest.mark.parametrize(("n", "number", "last"), [(1, 1, 0), (1, 2, 2), (2, 1, 12), (2, 10, 22), (3, 10, 34)])
def test_of_a_file_that_a_crash_cut_short_the_last_whole_row_counts(
    n: int, number: int, last: int, offline: Path, tmp_path: Path
) -> None:
    """The cut is in the row of the given optimizer step; `last` is the number of the row before it."""
    file = tmp_path / offline.parent.name / offline.name
    file.parent.mkdir()
    data = offline.read_bytes()
    file.write_bytes(data[: data.index(f"{loss(n, number)}".encode())])
    assert EarlierStarts((file,)).next_step() == last + 1


def test_of_a_file_without_a_whole_row_the_first_step_is_next(offline: Path, tmp_path: Path) -> None:
    for size in (0, 5, 100):
        file = tmp_path / f"offline-run-{size}" / offline.name
        file.parent.mkdir()
        file.write_bytes(offline.read_bytes()[:size])
        assert EarlierStarts((file,)).next_step() == 0


def test_without_earlier_starts_there_is_no_id_and_the_first_step_is_0(tmp_path: Path) -> None:
    none = earlier_starts(tmp_path, None)
    assert (none.files, none.id, none.online, none.next_step()) == ((), None, False, 0)


def test_only_files_of_the_last_run_count_oldest_first(tmp_path: Path) -> None:
    made(tmp_path, "offline-run-2026_01", "before", 1)
    later = made(tmp_path, "run-2026_02", "abc", 3)
    first = made(tmp_path, "offline-run-2026_03", "abc", 2)
    found = earlier_starts(tmp_path, None)
    assert found.files == (first, later)
    assert found.id == "abc" and found.online
    assert earlier_starts(tmp_path, "before").files[0].name == "run-before.wandb"
    assert not earlier_starts(tmp_path, "before").online
    assert earlier_starts(tmp_path, "other").files == ()


def test_files_that_arrived_are_marked_as_synced_for_wandb(tmp_path: Path) -> None:
    files = [made(tmp_path, "offline-run-2026_01", "abc", 1), made(tmp_path, "offline-run-2026_02", "abc", 2)]
    earlier_starts(tmp_path, None).mark_synced()
    assert all(file.with_name("run-abc.wandb.synced").exists() for file in files)


@pytest.mark.parametrize(
    ("starts", "following"),
    [
        ("on12 on-", 13),  # the second was killed before a row that the server lacks
        ("on12 on8", 13),  # of 12 rows, 5 had arrived, and the second sent the next ones
        ("on12 on-off15", 16),
        ("off5 on3", 4),  # the online start repeats what the offline one recorded
        ("off5 on3 off7", 8),
        ("on12 off15 on-", 16),
        ("off5 on- off7", 8),  # the second found the server down
        ("off5 off9", 10),
    ],
)
def test_rows_of_online_starts_and_of_later_offline_ones_are_not_repeated(
    starts: str, following: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert of_starts(starts, tmp_path, monkeypatch).next_step() == following


@pytest.mark.parametrize(
    ("starts", "skipped"),
    [("off5 on3", [True]), ("off5 on-", [False]), ("off5 on- off7", [False, False]), ("off5 on3 off7", [True, False])],
)
def test_wandb_sync_skips_offline_files_only_if_an_online_start_sent_their_rows_again(
    starts: str, skipped: list[bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = of_starts(starts, tmp_path, monkeypatch)
    found.mark_superseded()
    offline = [path for path in found.files if path.parent.name.startswith("offline-")]
    assert [path.with_name("run-abc.wandb.synced").exists() for path in offline] == skipped


def of_starts(starts: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> EarlierStarts:
    """Returns starts given as `on12` or `off5`: online or offline, and the last step in the file, `-` for none."""
    last: dict[Path, int] = {}
    for number, (kind, row) in enumerate(re.findall(r"(on|off)(\d+|-)", starts)):
        path = folder / f"{'offline-' if kind == 'off' else ''}run-{number}" / "run-abc.wandb"
        path.parent.mkdir()
        last[path] = -1 if row == "-" else int(row)
    monkeypatch.setattr(earlier, "_last_step", last.__getitem__)
    return EarlierStarts(tuple(last))
