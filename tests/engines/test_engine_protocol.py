"""An engine that a user wrote, which only knows the four methods of the protocol, serves a whole run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from test_run import experiment, lines
from transformers import AutoTokenizer

from stasc.engines.engine import Completion, Decoding, Engine, Request, SampleIndex
from stasc.models.live import LiveModel
from stasc.models.model import Model
from stasc.records import Advance
from stasc.runs.execute import run
from stasc.tracking import fallback, read
from stasc.tracking.console import Console

ANSWERS = ["Paris", "Rome", "Oslo"]


class Listed:
    """Answers from a list, as a server in another process would: it reads folders and frees the network in memory."""

    def __init__(self, answers: list[str], most: int = 5) -> None:
        self.answers, self.most = answers, most
        self.model: Model | None = None
        self.calls: list[str] = []
        self.folders: list[tuple[Path, Path | None]] = []
        self.sizes: list[int] = []

    def load(self, model: Model, live: LiveModel) -> None:
        self.calls.append("load")
        if model == self.model:
            return
        live.release()
        self.model = model
        self.folders.append(live.folders(model))
        self.tokenizer = AutoTokenizer.from_pretrained(self.folders[0][0])

    def batches(self, requests: Sequence[Request], size: int | None) -> list[list[SampleIndex]]:
        rows = [(r, sample) for r, request in enumerate(requests) for sample in range(len(request.keys))]
        size = size or self.most
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        self.calls.append("sample")
        self.sizes.append(len(batch))
        fallback.memory_short(len(batch))
        advance(len(batch))
        (end,) = decoding.stop_ids
        texts = [self.answers[requests[r].keys[sample] % len(self.answers)] for r, sample in batch]
        return [Completion((*self.tokenizer.encode(text), end), truncated=False) for text in texts]

    def release(self) -> None:
        self.model = None
        self.calls.append("release")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module", params=["full", "lora"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Listed:
    """The engine, built by its `_target_`, after a run in `folder`."""
    path = folder / request.param
    listed = experiment(
        *("~engine", "+engine={_target_: test_engine_protocol.Listed, answers: [Paris, Rome, Oslo]}"),
        *("filter=all", "iterations=1", "evaluation.batch=2", f"finetune={request.param}", f"store.dir={path}.store"),
    )
    assert isinstance(listed.engine, Listed)
    path.mkdir()
    run(listed, path, "group", Console())
    return listed.engine


def run_of(engine: Listed, folder: Path) -> Path:
    return folder / ("lora" if any(adapter for _, adapter in engine.folders) else "full")


def test_the_answers_of_a_run_are_those_of_the_engine(engine: Listed, folder: Path) -> None:
    pairs = lines(run_of(engine, folder) / "pairs.jsonl")
    outcomes = lines(run_of(engine, folder) / "outcomes.jsonl")
    assert len(pairs) == 3 * 2 * 2 and len(outcomes) == 2 * 3
    assert {row[name] for row in pairs + outcomes for name in ("y1", "y2")} == set(ANSWERS)


def test_a_model_is_loaded_before_each_batch_and_freed_before_each_fine_tuning_and_at_the_end(engine: Listed) -> None:
    runs = "".join({"load": "l", "sample": "s", "release": "r"}[call] for call in engine.calls).split("r")
    assert len(runs) == 3, "a fine-tuning and the end"
    assert all(part == "ls" * (len(part) // 2) for part in runs)
    assert all(runs[:2]) and not runs[2]


def test_an_engine_is_told_of_models_by_their_folders(engine: Listed, folder: Path) -> None:
    seen = list(dict.fromkeys(engine.folders))
    base = seen[0][0]
    assert (base / "config.json").is_file() and seen[0][1] is None
    if run_of(engine, folder).name == "lora":
        assert all(weights == base for weights, _ in seen)
        assert [adapter is not None for _, adapter in seen] == [False, True]
    else:
        assert [adapter for _, adapter in seen] == [None] * 2
        assert len({weights for weights, _ in seen}) == 2


def test_the_batch_of_evaluations_reaches_the_engine_which_else_chooses_its_own(engine: Listed) -> None:
    test, train = [2, 1], [5, 1]  # initial answers or corrections of 3 test questions; 6 initial answers
    corrections = [5, 5, 2]
    assert engine.sizes == test * 2 + train + corrections + test * 2


def test_low_memory_that_an_engine_reports_stands_in_the_journal_once_for_each_lower_number(
    engine: Listed, folder: Path
) -> None:
    events = [event for event in read(run_of(engine, folder) / "journal.jsonl") if event["event"] == "memory_short"]
    assert [event["rows"] for event in events] == [2, 1]


class Half:
    """Lacks two methods of an engine."""

    def load(self, model: Model, live: LiveModel) -> None:
        pass

    def release(self) -> None:
        pass


def test_an_engine_that_lacks_methods_is_refused_when_it_is_built() -> None:
    with pytest.raises(ValueError, match=r"^engine: Half has no batches, sample, see stasc\.engines\.engine$"):
        experiment("~engine", "+engine={_target_: test_engine_protocol.Half}")


def test_only_the_configuration_names_the_engine_of_transformers(engine: Listed) -> None:
    """A type checker holds `Listed` to be an engine; no module outside engines/ imports a concrete one."""
    built: Engine = engine
    assert built is engine
    source = Path(sys.modules["stasc"].__path__[0])
    outside = [path for path in source.rglob("*.py") if "engines" not in path.relative_to(source).parts]
    assert len(outside) > 50
    assert not [path for path in outside if "engines.hf" in path.read_text()]
