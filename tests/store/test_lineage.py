"""A run on several machines: what one derived again otherwise is never taken for what the other had."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import fake_lm
import pytest
from fake_lm import fake_experiment, run_fake, use_fakes
from test_leases import made
from test_store import batches, computed, files, of_kind, spy, told

from stasc import tracking
from stasc.machine.sealed import write_sealed
from stasc.runs.folder import earlier
from stasc.store.artifacts import KINDS, Artifact, InputsChanged, Store
from stasc.store.cached import INPUTS

composed = cache(fake_experiment)


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[str], None]:
    """Goes on on a machine that rounds otherwise."""

    def to(machine: str) -> None:
        monkeypatch.setattr(fake_lm, "ROUNDING", machine)

    use_fakes(monkeypatch, folder / "base")
    to("one")
    return to


def artifacts(folder: Path) -> dict[tuple[str, str], Artifact]:
    store = Store(folder / "store", {})
    return {(kind, artifact.key): artifact for kind in KINDS for artifact in store.every(kind)}


def mixed(folder: Path) -> list[tuple[str, str, str]]:
    """The artifacts that were computed from other content than there is now, and from which input."""
    there = artifacts(folder)
    content = {key: artifact.content for (kind, key), artifact in there.items() if kind != "model"}
    return [
        (kind, key, name)
        for (kind, key), artifact in there.items()
        for name in INPUTS
        if name in artifact.made_of
        and artifact.inputs[name] != content.get(artifact.made_of[name], artifact.made_of[name])
    ]


def test_weights_that_another_machine_derives_otherwise_are_told_of_and_what_followed_is_derived_again(
    move: Callable[[str], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """M_1 was dropped. It is wanted again, where it comes out otherwise."""
    first = run_fake(composed(), folder / "first")
    m_1, m_2 = made(folder / "first")
    before = artifacts(folder)
    move("two")
    colder = run_fake(composed("evaluation.temperature=0.1"), folder / "colder")
    assert [warning for warning in told(caplog) if "the weights of M_1 were derived again and differ" in warning]
    assert made(folder / "colder") == [m_1, m_2]
    assert {("model", m_1), ("finetune", m_1), ("finetune", m_2)} <= computed(folder / "colder")
    after = artifacts(folder)
    assert after["finetune", m_1].content != before["finetune", m_1].content
    assert mixed(folder), "what the first run had from M_1 is still there"

    caplog.clear()
    again = run_fake(composed(), folder / "again")
    assert again != first
    assert run_fake(composed("evaluation.temperature=0.1"), folder / "colder-again") == colder
    assert mixed(folder) == []
    assert not [warning for warning in told(caplog) if "derived again" in warning]
    assert run_fake(composed(), folder / "once-more") == again
    assert computed(folder / "once-more") == set()


@pytest.mark.parametrize("kind", ["initial", "correction"])
def test_answers_that_another_machine_samples_otherwise_take_with_them_what_followed(
    kind: str, move: Callable[[str], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_fake(composed("store.keep_models=all"), folder / "run")
    shutil.rmtree(of_kind(folder / "run", kind)[0])
    move("two")
    run_fake(composed("store.keep_models=all"), folder / "again")
    assert mixed(folder) == []
    followed = {of for of, _ in computed(folder / "again")}
    assert followed == ({"correction"} if kind == "initial" else set()) | {kind, "evaluation"}
    assert len([text for text in caplog.messages if "was computed from other content" in text]) == len(followed) - 1


def test_nothing_is_computed_twice_where_what_is_derived_again_is_the_same(
    move: Callable[[str], None], folder: Path
) -> None:
    expected = run_fake(composed("store.keep_models=all"), folder / "run")
    victim = of_kind(folder / "run", "initial")[0]
    shutil.rmtree(victim)
    assert run_fake(composed("store.keep_models=all"), folder / "again") == expected
    assert computed(folder / "again") == {("initial", victim.name)}


def test_the_journal_tells_the_content_of_every_stage(move: Callable[[str], None], folder: Path) -> None:
    run_fake(composed("store.keep_models=all"), folder / "run")
    there = artifacts(folder)
    for event in tracking.read(folder / "run" / "journal.jsonl"):
        if event["event"] == "stage":
            assert event["content"] == there[event["kind"], event["key"]].content


def test_a_stage_that_two_machines_computed_says_so(
    move: Callable[[str], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_fake(composed("store.keep_models=all"), folder / "run")
    artifact = next(artifact for artifact in of_kind(folder / "run", "initial") if len(files(artifact)) > 1)
    work = folder / "store" / "unfinished" / f"initial-{artifact.name}"
    shutil.move(artifact, work)
    files(work)[0].unlink()
    move("two")
    run_fake(composed("store.keep_models=all"), folder / "again")
    (warning,) = [warning for warning in told(caplog) if "begun on another machine" in warning]
    assert str(work) in warning
    machines = artifacts(folder)["initial", artifact.name].machines
    assert [machine["processor"] for machine in machines] == ["one", "two"]


def test_unfinished_work_of_other_inputs_is_begun_anew(folder: Path) -> None:
    store, key = Store(folder / "store", {}), "0" * 64
    work = folder / "store" / "unfinished" / f"correction-{key}"

    def derived(y1: str) -> Artifact:
        return store.derive("correction", key, {}, lambda: {"y1": y1}, fill, lambda artifact: None)[0]

    def fill(work: Path) -> None:
        (work / "b").write_text("b")

    derived("one")
    shutil.move(folder / "store" / "correction" / key, work)
    (work / "a").write_text("of the same inputs")
    assert set(derived("one").files) == {"a", "b"}
    shutil.move(folder / "store" / "correction" / key, work)
    assert set(derived("other").files) == {"b"}


def test_an_input_that_changes_meanwhile_has_the_stage_computed_anew(folder: Path) -> None:
    """As weights do that are derived again when they are first read."""
    store, current, seen = Store(folder / "store", {}), {"model": "before"}, []

    def compute(work: Path) -> None:
        seen.append(current["model"])
        current["model"] = "after"
        if len(seen) == 1:
            raise InputsChanged
        (work / "x").write_text("x")

    artifact, _ = store.derive("initial", "0" * 64, {}, current.copy, compute, lambda artifact: None)
    assert seen == ["before", "after"]
    assert artifact.inputs == {"model": "after"}
    assert set(artifact.files) == {"x"}


def test_what_changed_is_found_before_anything_is_sampled_from_it(
    move: Callable[[str], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_fake(composed(), folder / "first")
    spy(monkeypatch, folder / "alone")
    run_fake(composed("evaluation.temperature=0.1"), folder / "apart" / "run")
    move("two")
    spy(monkeypatch, folder / "counter")
    run_fake(composed("evaluation.temperature=0.1"), folder / "colder")
    assert batches(folder / "counter") <= batches(folder / "alone"), "none is sampled twice"


def test_iterations_that_come_out_otherwise_are_told_again(
    move: Callable[[str], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The store has gone, and the run goes on in its folder on another machine."""
    run_fake(composed("iterations=1"), folder / "run")
    (folder / "run" / "summary.json").unlink()
    shutil.rmtree(folder / "store")
    move("two")
    run_fake(composed("iterations=1"), folder / "run")
    summary = json.loads((folder / "run" / "summary.json").read_text())
    told = {
        event["n"]: event for event in tracking.read(folder / "run" / "journal.jsonl") if event["event"] == "iteration"
    }
    for entry in summary["iterations"]:
        assert told[entry["n"]]["test"] == entry["test"]
    assert earlier(folder / "run").summary == summary


def test_what_another_machine_computed_is_used_with_one_warning(
    move: Callable[[str], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run_fake(composed(), folder / "run")
    move("two")
    caplog.set_level(logging.WARNING)
    assert run_fake(composed(), folder / "again") == expected
    (warning,) = told(caplog)
    assert "another machine" in warning and "processor one there, two here" in warning


def test_a_commit_that_is_that_of_unfinished_work_is_damage(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, key = Store(folder / "store", {}), "0" * 64
    place = store.root / "filter" / key
    body = {"schema": 2, "kind": "filter", "key": key, "made_of": {}, "inputs": {}, "machines": []}
    write_sealed(place / "COMMIT.json", body)
    store.derive("filter", key, {}, dict, lambda work: None, lambda artifact: None)
    assert len(told(caplog)) == 1
