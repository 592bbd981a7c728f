"""A language model that is a hash function: a whole run without its arithmetic, in milliseconds."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_run import experiment

from stasc.engines.engine import Completion, Decoding, Request, SampleIndex
from stasc.engines.hf.engine import HF
from stasc.models.model import M_0, Model
from stasc.prefix_tree.batch import Example
from stasc.records import Advance, OptimizerStep
from stasc.runs import execute as runner
from stasc.runs import prepare
from stasc.runs.experiment import Experiment
from stasc.tracking.console import Console
from stasc.training import loop
from stasc.training.loop import Training
from stasc.training.methods import Method

ROUNDING = "b"  # of the machine


def sha256(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class FakeLive:
    """Stands for `LiveModel`; its network is the content of the weights' file."""

    base: str
    four_bit = False
    device = torch.device("cpu")
    dtype = training_dtype = torch.float32
    attention = None
    context = None

    def __init__(self, base: Path) -> None:
        if not base.exists():  # another process may be reading it
            base.mkdir(parents=True)
            (base / "config.json").write_text("{}")
        self.base = str(base)
        self.before_read: Callable[[Model], None] = lambda model: None
        self._current: Model | None = None

    def load(self, model: Model) -> str:
        if model == M_0:
            return "M_0"
        if model != self._current:
            self.before_read(model)
        assert model.weights
        self._current = model
        return (model.weights / "model.safetensors").read_text()

    def holds(self, model: Model) -> bool:
        return model == self._current

    def renamed(self, old: Model, new: Model) -> None:
        if self._current == old:
            self._current = new

    def adopt(self, model: Model) -> None:
        self._current = model

    def pop_loading_s(self) -> float:
        return 0.0

    def release(self) -> None:
        self._current = None


class FakeTokenizer:
    chat_template = "a template"

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


class FakeChat:
    args: dict[str, object] = {}  # noqa: RUF012
    end_id = 0
    stop_ids = frozenset({0})
    ids = frozenset(range(256))
    stop_strings = ()
    tokenizer = FakeTokenizer()

    def prompt(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return tuple(sha256(messages).encode())

    def completion(self, messages: object, answer: str, *, ended: bool = True) -> tuple[int, ...]:
        return (*answer.encode(), 0)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode()


@dataclass
class FakeEngine:
    batch_size: int

    def load(self, model: Model, live: Any) -> None:
        self.weights = live.load(model)

    def batches(self, requests: Sequence[Request], size: int | None) -> list[list[SampleIndex]]:
        return HF(self.batch_size).batches(requests, size)

    def release(self) -> None:
        pass

    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        advance(len(batch))
        texts = [sha256(ROUNDING, self.weights, requests[r].prompt, requests[r].keys[s]) for r, s in batch]
        return [Completion(tuple(text[:6].encode()), False) for text in texts]


def fake_finetune(
    method: Method,
    loss: object,
    live: Any,
    start: Model,
    examples: Sequence[Example],
    folder: Path,
    seed: int,
    on_step: Callable[[OptimizerStep], None],
) -> tuple[Model, Training]:
    network = live.load(start)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(sha256(ROUNDING, network, [e.completion for e in examples], seed))
    (folder / "config.json").write_text("{}")
    model = method.model(start, folder)
    live.adopt(model)
    on_step(OptimizerStep(1.0, 1e-4, 0.5, len(examples), 3 * len(examples), 1.0, seconds=seed % 997))
    return model, Training(1.0, 1, len(examples), len(examples), 0, 64)


def fake_experiment(*overrides: str) -> Experiment:
    """A real experiment but for its arithmetic, with several batches per stage and a filter that keeps some pairs."""
    real = experiment(
        "~reward",
        "+reward={_target_: test_run.even_first_byte, _partial_: true}",
        "filter=lenient",
        "iterations=2",
        "evaluation.batch=2",
        *overrides,
    )
    return replace(real, engine=FakeEngine(batch_size=8))


versions = functools.cache(runner.provenance.versions)  # reading them takes a quarter of such a run


def use_fakes(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    """Makes runs load no model."""
    monkeypatch.setattr(prepare, "_open_model", lambda experiment: (FakeChat(), FakeLive(base)))
    monkeypatch.setattr(loop, "finetune", fake_finetune)
    monkeypatch.setattr(runner.provenance, "commit", lambda: None)  # git takes longer than the whole run
    monkeypatch.setattr(runner.provenance, "machine", lambda device: {"processor": ROUNDING, "threads": 1})
    monkeypatch.setattr(runner.provenance, "versions", versions)


def results(folder: Path) -> dict[str, str]:
    """sha256 of everything that a repeated run must reproduce, without wall times and cache hits."""
    summary = json.loads((folder / "summary.json").read_text())
    for entry in summary["iterations"]:
        del entry["seconds"], entry["reused"]
    files = ("outcomes.jsonl", "pairs.jsonl", "model/model.safetensors", "model/adapter_model.safetensors")
    return {"summary": sha256(summary)} | {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files if (folder / name).exists()
    }


def run_fake(experiment: Experiment, folder: Path) -> dict[str, str]:
    """Runs in `folder`, with a store beside it, and returns its results."""
    folder.mkdir(parents=True, exist_ok=True)
    beside = replace(experiment.store, dir=str(folder.parent / "store"))
    runner.run(replace(experiment, store=beside), folder, "group", Silent())
    return results(folder)


class Silent(Console):
    """Shows nothing."""

    @contextmanager
    def stage(self, label: str, total: int, unit: str) -> Iterator[Any]:
        yield lambda k=1: None

    def iteration(self, summary: Mapping[str, Any]) -> None:
        pass

    def final(self, summary: Mapping[str, Any]) -> None:
        pass
