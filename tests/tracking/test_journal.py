"""The journal is a record that can be trusted."""

from __future__ import annotations

import json
import os
import re
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stasc.tracking import Journal, read


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
