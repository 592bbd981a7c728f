"""A finished run's folder: what is damaged there is found, told and written anew; what is whole is left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fake_lm import fake_experiment, results, run_fake, use_fakes
from test_store import computed, flip, told, truncate, zero

from stasc.records import Answer, Iteration, Pair, Question, Split
from stasc.runs.folder import RunFolder
from stasc.tasks.rewards import InAccuracy
from stasc.tracking import Journal, read
from stasc.tracking.console import iteration_line
from stasc.tracking.tracker import Nothing

composed = cache(fake_experiment)
RESULTS = ("outcomes.jsonl", "pairs.jsonl", "summary.json", "model/model.safetensors", "model/tokenizer.json")


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """The folder of a run of one iteration."""
    use_fakes(monkeypatch, folder / "base")
    run_fake(composed("iterations=1"), folder / "run")
    return folder / "run"


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def starts(folder: Path) -> int:
    return sum(event["event"] == "run_started" for event in read(folder / "journal.jsonl"))


def test_a_whole_one_is_left_as_it_is(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = everything(finished)
    run_fake(composed("iterations=1"), finished)
    assert everything(finished) == before
    assert told(caplog) == []


@pytest.mark.parametrize("damage", [flip, truncate, zero])
@pytest.mark.parametrize("name", RESULTS)
def test_a_damaged_file_is_quarantine_and_written_anew(
    name: str, damage: Callable[[Path], None], finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected, victim = results(finished), finished / name
    copy = victim.read_bytes()
    victim.unlink()  # the model's is the store's own
    victim.write_bytes(copy)
    damage(victim)
    run_fake(composed("iterations=1"), finished)
    assert results(finished) == expected
    (warning,) = told(caplog)
    aside = f"{name.partition('/')[0]}.corrupt-1"
    assert str(finished) in warning and warning.endswith(f"quarantined as {aside}")
    assert (finished / aside).exists()
    assert computed(finished) == set()
    assert starts(finished) == 2
    run_fake(composed("iterations=1"), finished)
    assert starts(finished) == 2


@pytest.mark.parametrize("name", [*RESULTS, "model"])
def test_what_is_missing_is_written_anew(name: str, finished: Path) -> None:
    expected, victim = results(finished), finished / name
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    run_fake(composed("iterations=1"), finished)
    assert results(finished) == expected
    assert computed(finished) == set()


@pytest.mark.parametrize("line", [0, 3, -1])
def test_a_damaged_journal_does_not_let_another_run_in(
    line: int, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = results(finished)
    journal = finished / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"event"', b'"evant"')
    journal.write_bytes(b"".join(lines))
    with pytest.raises(ValueError, match="holds another run"):
        run_fake(composed("iterations=1", "filter.margin=0.1"), finished)
    assert results(finished) == expected
    assert len(told(caplog)) == 1
    run_fake(composed("iterations=1", "store.resume=must"), finished)
    assert results(finished) == expected
    assert starts(finished) == 1, "the other was quarantined"


def test_a_folder_of_another_version_is_refused_by_name(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    (finished / "summary.json").write_text(json.dumps({**summary, "schema": 3}))
    before = everything(finished)
    with pytest.raises(
        ValueError, match=rf"{finished}/summary\.json has schema 3, and this version of stasc reads 1 and 2"
    ):
        run_fake(composed("iterations=1"), finished)
    assert everything(finished) == before


def test_what_a_crash_left_goes(finished: Path) -> None:
    (finished / ".tmp-ab12-summary.json").write_text("half")
    (finished / ".tmp-model").mkdir()
    (finished / "model" / "tokenizer.json").unlink()
    run_fake(composed("iterations=1"), finished)
    assert not list(finished.glob(".tmp-*"))


def test_a_summary_that_is_not_what_the_journal_tells_is_written_anew(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = results(finished)
    summary = json.loads((finished / "summary.json").read_text())
    for entry in summary["iterations"]:
        entry["test"]["corr_acc"] = 0.99
    (finished / "summary.json").write_text(json.dumps(summary))
    run_fake(composed("iterations=1"), finished)
    assert results(finished) == expected
    (warning,) = told(caplog)
    assert "summary.json does not match the journal; quarantined as summary.json.corrupt-1" in warning


def test_a_folder_of_before_keys_is_refused(finished: Path) -> None:
    (finished / "summary.json").unlink()
    (finished / "journal.jsonl").unlink()
    with Journal(finished / "journal.jsonl") as journal:
        journal.write("run_started", config={}, versions={})
    with pytest.raises(ValueError, match="holds another run"):
        run_fake(composed("iterations=1"), finished)


def test_lines_have_the_questions_text_and_why_a_pair_was_dropped(finished: Path) -> None:
    questions = [json.loads(line) for line in (finished / "questions.jsonl").read_text().splitlines()]
    texts = {row["id"]: row["question"] for row in questions}
    for name in ("outcomes.jsonl", "pairs.jsonl"):
        rows = [json.loads(line) for line in (finished / name).read_text().splitlines()]
        assert all(row["question"] == texts[row["question_id"]] for row in rows)
    assert {row["kept"] for row in rows} == {True, False}
    for row in rows:  # of pairs.jsonl; the filter is lenient
        told = "right, and made worse" if row["r1"] == 1 else "wrong, and not better"
        assert row["dropped"] == (None if row["kept"] else f"{told}: r1 {row['r1']:g}, r2 {row['r2']:g}")


def test_of_a_long_question_lines_have_its_beginning_and_end(folder: Path) -> None:
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, Nothing(), 1.0)
        long = Question("q", f"Read this. {'word ' * 100_000}Who?", ("I",))
        pair = Pair(long, 0, 0, 0, Answer("I", 1), Answer("You", 1), 1.0, 0.0)
        run.begin([Split("train", (long,))])
        run.iteration(Iteration(1, None, [pair], [], [pair]), None, {})
    for name in ("outcomes.jsonl", "pairs.jsonl"):
        (row,) = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        assert row["question"].startswith("Read this. word ") and row["question"].endswith(" word Who?")
        assert len(row["question"]) < 2_010 and " […] " in row["question"]
    (asked,) = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert asked["question"] == long.text


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_the_share_of_answers_without_the_marker_is_in_the_summary(marked: int, folder: Path) -> None:
    texts = [f"{'**Answer :** ' if i < marked else ''}4" for i in range(2)]
    pairs = [
        Pair(Question(f"q{i}", "?", ("4",)), 0, 0, 0, Answer(text, 1), Answer("Answer: 4", 1), 1.0, 1.0)
        for i, text in enumerate(texts)
    ]
    for scope in ("final", "whole"):
        summary: dict[str, Any] = {"variant": "EIE", "seed": 3, "iterations": []}
        (folder / scope).mkdir()
        with Journal(folder / scope / "journal.jsonl") as journal:
            run = RunFolder(folder / scope, summary, journal, Nothing(), 1.0, InAccuracy(scope, "Answer:"))
            run.iteration(Iteration(1, None, pairs, [], pairs), None, {})
        (entry,) = summary["iterations"]
        for part in ("test", "train"):
            found = {name: share for name, share in entry[part].items() if "unmarked" in name}
            assert found == ({"init_unmarked": 1 - marked / 2, "corr_unmarked": 0.0} if scope == "final" else {})
        line = iteration_line({**entry, "seconds": {"total": 1.0}})
        share = f"without the answer marker {100 * (1 - marked / 2):.1f} % and 0.0 %"
        assert (share in line) is (scope == "final" and marked < 2)


def test_an_iteration_that_differs_from_its_record_is_recorded_again_and_told_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = Pair(Question("q", "?", ("4",)), 0, 0, 0, Answer("4", 1), Answer("5", 1), 1.0, 0.0)
    for other, seconds in ((pair, 1.0), (pair, 2.0), (replace(pair, r2=1.0), 1.0)):
        with Journal(folder / "journal.jsonl") as journal:
            run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, Nothing(), 1.0)
            run.iteration(Iteration(0, None, [], [], [other]), None, {"evaluation": seconds}, reused=int(seconds))
    entries = [event for event in read(folder / "journal.jsonl") if event["event"] == "iteration"]
    assert [entry["test"]["corr_acc"] for entry in entries] == [0.0, 1.0]
    assert [entry["reused"] for entry in entries] == [1, 1], "neither times nor cache hits are a difference"
    (warning,) = told(caplog)
    assert warning.startswith("iteration 0 differs from its record of an earlier start, which W&B may hold; ")
    assert warning.endswith(f"python -m stasc.tracking sync {folder}")


class Impatient(Nothing):
    """A tracker whose upload the user interrupts."""

    def finish(self, status: str, error: str | None) -> bool:
        raise KeyboardInterrupt


def test_a_run_whose_upload_is_interrupted_is_complete_all_the_same(folder: Path) -> None:
    summary: dict[str, Any] = {"variant": "EIE", "seed": 3, "iterations": []}
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, summary, journal, Impatient(), 1.0)
        with pytest.raises(KeyboardInterrupt):
            run.end("finished")
    assert [event["status"] for event in read(folder / "journal.jsonl") if event["event"] == "run_ended"] == [
        "finished"
    ]
    assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
