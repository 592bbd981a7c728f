"""The stages of Algorithm 1 on a real model: conversations in, answers and models out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from stasc import pairing
from stasc.chat import Chat
from stasc.engine import Decoding, Request, noise
from stasc.engine.hf import HF
from stasc.finetune import Example, Full, Lora, steps
from stasc.model import LiveModel, Model
from stasc.prompt import Message, Prompt
from stasc.records import Advance, Answer, Pair, Question, Split
from stasc.settings import Sampling

_LABELS = {"initial": "initial answers", "correction": "corrections"}


class Progress(Protocol):
    """Shows how far a stage is."""

    def __call__(self, label: str, total: int, unit: str) -> AbstractContextManager[Advance]: ...


@dataclass
class Stages:
    """Sampling, correcting, scoring and fine-tuning, bound to one model in memory and one seed.

    `engines` and `sampling` are by split name. Seconds spent go to `seconds` by stage, what a fine-tuning did to
    `training`, by iteration. Models are written to `models/<n>`.
    """

    live: LiveModel
    chat: Chat
    engines: dict[str, HF]
    prompt: Prompt
    reward: pairing.Reward
    pairing: pairing.Pairing
    tune: Full | Lora
    sampling: dict[str, Sampling]
    seed: int
    models: Path
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    training: dict[int, dict[str, float]] = field(default_factory=dict)

    def sample(self, model: Model, split: Split, n: int) -> list[list[Answer]]:
        """y1[question][i] ~ model(. | x)."""
        conversations = [self.prompt.ask(question.text) for question in split.questions]
        keys = [
            [self._key(split, "initial", n, question, i) for i in range(self.sampling[split.name].n_init)]
            for question in split.questions
        ]
        return self._answers(model, split, "initial", conversations, keys)

    def correct(self, model: Model, split: Split, y1: Sequence[Sequence[Answer]], n: int) -> list[list[list[Answer]]]:
        """y2[question][i][k] ~ model(. | x, y1[question][i])."""
        seen = [
            (question, i, answer)
            for question, answers in zip(split.questions, y1, strict=True)
            for i, answer in enumerate(answers)
        ]
        conversations = [self.prompt.ask_to_correct(question.text, answer.text) for question, _, answer in seen]
        keys = [
            [self._key(split, "correction", n, question, i, k) for k in range(self.sampling[split.name].n_corr)]
            for question, i, _ in seen
        ]
        corrections = iter(self._answers(model, split, "correction", conversations, keys))
        return [[next(corrections) for _ in answers] for answers in y1]

    def score(
        self, split: Split, y1: Sequence[Sequence[Answer]], y2: Sequence[Sequence[Sequence[Answer]]]
    ) -> list[Pair]:
        """The pairs of initial answers and corrections, with their rewards."""
        return pairing.score(split, y1, y2, self.reward, self.pairing)

    def finetune(self, start: Model, kept: Sequence[Pair], n: int) -> Model:
        """M_n: `start` trained on the kept corrections."""
        examples = [self.example(pair) for pair in kept]
        with self._timed("finetune", "fine-tuning", steps(self.tune, len(examples)), "steps") as advance:
            model, training = self.tune(
                self.live,
                start,
                examples,
                self.models / str(n),
                noise.noise_key(self.seed, "finetune", n) % 2**32,
                advance,
            )
        self.training[n] = asdict(training)
        return model

    def example(self, pair: Pair) -> Example:
        """What is trained for a pair: its correction, in the conversation that it was sampled in."""
        conversation = self.prompt.ask_to_correct(pair.question.text, pair.y1.text)
        completion = self.chat.completion(conversation, pair.y2.text, ended=not pair.y2.truncated)
        if not completion:
            raise ValueError(f"{pair.id}: {pair.y2.text!r} has no token to train on")
        return Example(pair.id, self.chat.prompt(conversation), completion)

    def pop_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage since the last call."""
        seconds, self.seconds = self.seconds, {}
        return seconds

    def _key(self, split: Split, stage: str, n: int, question: Question, *sample: int) -> int:
        return noise.noise_key(self.seed, split.name, stage, n, question.id, *sample)

    def _answers(
        self,
        model: Model,
        split: Split,
        stage: str,
        conversations: Sequence[Sequence[Message]],
        keys: Sequence[Sequence[int]],
    ) -> list[list[Answer]]:
        """One answer per key of each conversation."""
        sampling = self.sampling[split.name]
        decoding = Decoding(sampling.temperature, sampling.top_p, sampling.max_new_tokens, self.chat.stop_ids)
        requests = [
            Request(self.chat.prompt(conversation), tuple(samples))
            for conversation, samples in zip(conversations, keys, strict=True)
        ]
        training = split.name == "train"
        label = _LABELS[stage] if training else f"{split.name} {_LABELS[stage]}"
        with self._timed(stage if training else "evaluation", label, sum(map(len, keys)), "answers") as advance:
            network = self.live.load(model)
            completions = self.engines[split.name](network, requests, decoding, advance)
        return [[Answer(self.chat.decode(c.ids), len(c.ids), c.truncated) for c in samples] for samples in completions]

    @contextmanager
    def _timed(self, name: str, label: str, total: int, unit: str) -> Iterator[Advance]:
        began = time.perf_counter()
        try:
            with self.progress(label, total, unit) as advance:
                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
