"""Optimizer steps are sent to a run's tracker and recorded in its journal, each once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fake_lm import fake_experiment, fake_finetune, run_fake, use_fakes
from test_store import computed, of_kind
from tracked import FakeWandb, pairs_of, settings, step_of

from stasc.records import Iteration, OptimizerStep
from stasc.runs.folder import RunFolder
from stasc.store.artifacts import TIMES, Store
from stasc.tracking import Journal, RunInfo, Tracker, read
from stasc.training import loop

composed = cache(fake_experiment)


@dataclass
class Recorder:
    """A tracker that keeps what it gets, and the option that starts it."""

    got: list[tuple[str, int]] = field(default_factory=list)
    steps: dict[int, list[OptimizerStep]] = field(default_factory=dict)

    def start(self, info: RunInfo) -> Tracker:
        return self

    def step(self, n: int, step: OptimizerStep) -> None:
        self.got.append(("step", n))
        self.steps.setdefault(n, []).append(step)

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[object], outcomes: Sequence[object]) -> None:
        self.got.append(("iteration", entry["n"]))

    def finish(self, status: str, error: str | None) -> bool:
        self.got.append((status, -1))
        return True


def trainings(folder: Path) -> list[dict[str, Any]]:
    """Returns the events of fine-tunings in a journal, without the time."""
    events = [event for event in read(folder / "journal.jsonl") if event["event"] == "training"]
    return [{name: value for name, value in event.items() if name not in ("time", "event")} for event in events]


def columns(n: int, *steps: OptimizerStep) -> dict[str, Any]:
    return {"n": n, **{name: [asdict(step)[name] for step in steps] for name in asdict(step_of())}}


def start(folder: Path, tracker: Tracker, *steps: OptimizerStep, status: str = "finished") -> None:
    """Runs M_0 and an iteration with these steps in a folder; one that fails does so after its steps."""
    folder.mkdir(exist_ok=True)
    with Journal(folder / "journal.jsonl") as journal:
        run = RunFolder(folder, {"variant": "EIE", "seed": 3, "iterations": []}, journal, tracker, 1.0)
        run.begin(())
        for _ in range(2):  # once when they are computed, and once when the fine-tuning is read
            for number, step in enumerate(steps, start=1):
                run.step(1, number, step)
        if status == "finished":
            run.iteration(Iteration(1, None, [], [], [PAIR]), None, {})
        run.end(status, None if status == "finished" else "OSError: gone")


PAIR = pairs_of(1)[0]
ONE, TWO = step_of(2.0), step_of(None, grad_norm=None, epoch=1.0)


def test_repeated_steps_are_recorded_once(folder: Path) -> None:
    recorder = Recorder()
    start(folder / "run", recorder, ONE, TWO)
    assert recorder.steps == {1: [ONE, TWO]}
    assert recorder.got == [("step", 1), ("step", 1), ("iteration", 1), ("finished", -1)]
    assert trainings(folder / "run") == [columns(1, ONE, TWO)]


def test_the_steps_of_an_iteration_that_failed_are_in_the_journal(folder: Path) -> None:
    start(folder / "run", Recorder(), ONE, status="failed")
    assert trainings(folder / "run") == [columns(1, ONE)]
    assert [event["event"] for event in read(folder / "run" / "journal.jsonl")][-2:] == ["training", "run_ended"]


def test_a_resumed_run_sends_its_tracker_all_steps_and_records_the_missing_ones(folder: Path) -> None:
    start(folder / "run", Recorder(), ONE, status="interrupted")
    for _ in range(2):
        recorder = Recorder()
        start(folder / "run", recorder, ONE, replace(TWO, seconds=9.0))
        assert recorder.steps == {1: [ONE, replace(TWO, seconds=9.0)]}
        assert trainings(folder / "run") == [columns(1, ONE), columns(1, ONE, replace(TWO, seconds=9.0))]
    start(folder / "run", Recorder(), ONE, replace(TWO, seconds=1.0))
    assert len(trainings(folder / "run")) == 2, "a time is no difference"
    start(folder / "run", Recorder(), ONE, replace(TWO, loss=1.0))
    assert trainings(folder / "run")[2:] == [columns(1, ONE, replace(TWO, loss=1.0))]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Callable[[int], None]:
    """Makes runs load no model, and sets how many seconds the next optimizer step takes; each later one takes more."""
    use_fakes(monkeypatch, folder / "base")

    def set_to(seconds: int) -> None:
        ticks = count(seconds)

        def finetune(*given: Any) -> Any:
            *others, on_step = given

            def twice(step: OptimizerStep) -> None:
                on_step(replace(step, seconds=float(next(ticks))))
                on_step(replace(step, loss=0.5, seconds=float(next(ticks))))

            return fake_finetune(*others, twice)

        monkeypatch.setattr(loop, "finetune", finetune)

    set_to(1)
    return set_to


def test_a_run_sends_each_step_before_its_iteration(clock: Callable[[int], None], folder: Path) -> None:
    recorder = Recorder()
    run_fake(replace(composed(), tracking=recorder), folder / "run")
    assert recorder.got == [
        ("iteration", 0),
        *(("step", 1), ("step", 1), ("iteration", 1)),
        *(("step", 2), ("step", 2), ("iteration", 2)),
        ("finished", -1),
    ]
    assert [step.seconds for steps in recorder.steps.values() for step in steps] == [1, 2, 3, 4]
    assert trainings(folder / "run") == [columns(n, *recorder.steps[n]) for n in (1, 2)]


def test_a_cache_hit_sends_the_same_steps_with_the_seconds_that_were_measured(
    clock: Callable[[int], None], folder: Path
) -> None:
    recorders = [Recorder(), Recorder(), Recorder()]
    for number, recorder in enumerate(recorders[:2]):
        run_fake(replace(composed(), tracking=recorder), folder / str(number))
        clock(100)
    assert computed(folder / "1") == set()
    assert recorders[0] == recorders[1]
    assert trainings(folder / "0") == trainings(folder / "1")

    for artifact in (folder / "store" / "model").iterdir():  # weights that are computed again leave the figures alone
        artifact.rename(folder / f"moved-{artifact.name}")
    run_fake(replace(composed(), tracking=recorders[2]), folder / "2")
    assert recorders[2] == recorders[0]


def test_a_summary_counts_cache_hits_and_has_the_seconds_of_when_they_were_misses(
    clock: Callable[[int], None], folder: Path
) -> None:
    summaries = []
    for name in ("first", "again"):
        run_fake(composed("iterations=1"), folder / name)
        summaries.append(json.loads((folder / name / "summary.json").read_text())["iterations"])
    first, again = summaries
    assert [entry["reused"] for entry in first] == [0, 0]
    # initial, correction and evaluation of M_0 and M_1, and between them initial, correction, filter and fine-tuning
    assert [entry["reused"] for entry in again] == [3, 7]
    for one, other in zip(first, again, strict=True):
        stages = one["seconds"].keys() - {"total", "loading"}
        assert {name: one["seconds"][name] for name in stages} == {name: other["seconds"][name] for name in stages}
        assert stages == {"evaluation", *(("initial", "correction", "filter", "finetune") if one["n"] else ())}


def test_the_times_of_steps_do_not_change_the_content_of_a_fine_tuning(
    clock: Callable[[int], None], folder: Path
) -> None:
    contents, times = [], []
    for seconds, name in ((1, "one"), (100, "other")):
        clock(seconds)
        run_fake(composed("iterations=1"), folder / name / "run")
        artifacts = {kind: [*Store(folder / name / "store", {}).every(kind)] for kind in ("finetune", "evaluation")}
        contents.append({kind: [(one.key, one.content) for one in found] for kind, found in artifacts.items()})
        times += [one.read(TIMES) for one in artifacts["finetune"]]
    assert contents[0] == contents[1]
    assert times == [b"[1.0, 2.0]", b"[100.0, 101.0]"]


def test_a_fine_tuning_without_its_times_is_damaged_and_computed_again(
    clock: Callable[[int], None], folder: Path
) -> None:
    run_fake(composed("iterations=1"), folder / "run")
    for artifact in [*of_kind(folder / "run", "finetune"), *of_kind(folder / "run", "model")]:
        (artifact / TIMES).unlink()
    clock(100)
    recorder = Recorder()
    run_fake(replace(composed("iterations=1"), tracking=recorder), folder / "again")
    assert [step.seconds for step in recorder.steps[1]] == [100, 101]


def test_a_step_of_an_iteration_that_fails_is_sent_and_recorded(
    clock: Callable[[int], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: Any) -> None:
        given[-1](ONE)
        raise OSError("gone")

    monkeypatch.setattr(loop, "finetune", fails)
    recorder = Recorder()
    with pytest.raises(OSError, match="gone"):
        run_fake(replace(composed(), tracking=recorder), folder / "run")
    assert recorder.got == [("iteration", 0), ("step", 1), ("failed", -1)]
    assert trainings(folder / "run") == [columns(1, ONE)]
    clock(1)
    recorder = Recorder()
    run_fake(replace(composed(), tracking=recorder), folder / "run")
    assert [event["n"] for event in trainings(folder / "run")] == [1, 1, 2]
    assert recorder.steps[1] == [replace(recorder.steps[1][0], seconds=1.0), replace(recorder.steps[1][1], seconds=2.0)]


def test_charts_of_a_run_vary_and_metrics_without_one_are_counts_or_are_shown_under_another_name(
    clock: Callable[[int], None], folder: Path, fake: FakeWandb
) -> None:
    """Answers are right by chance, all have 6 tokens, and every step has the same norm of gradients."""
    run_fake(replace(composed("iterations=3"), tracking=settings()), folder / "run")
    values: dict[str, list[float]] = {}
    for row in [*fake.rows(), *fake.rows("train/global_step")]:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    charts = fake.charts()
    assert charts.keys() == values.keys()
    same_by_construction = {"answers/initial_tokens", "answers/correction_tokens", "train/grad_norm"}
    assert {name for name, shown in charts.items() if shown and len(set(values[name])) == 1} == same_by_construction
    assert {name for name, shown in charts.items() if not shown and len(set(values[name])) > 1} == {
        *("iteration", "train/global_step", "finetune/examples", "finetune/tokens", "time/elapsed"),
        *("rewards/initial", "rewards/correction"),  # the accuracies, as answers are right or wrong
        *("samples/initial_reward", "samples/correction_reward"),
        *(f"samples/{a}_to_{b}" for a in ("right", "wrong") for b in ("right", "wrong")),
    }
