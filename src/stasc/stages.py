"""What the stages of Algorithm 1 compute on a real model: conversations in, answers and weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stasc import pairing
from stasc.chat import Chat
from stasc.engine import Decoding, Request, Row, noise
from stasc.engine.hf import HF
from stasc.finetune import Example, Full, Lora, Training, steps
from stasc.model import LiveModel, Model
from stasc.prompt import Message, Prompt
from stasc.records import Advance, Answer, Pair, Question, Split
from stasc.settings import Sampling
from stasc.target import Correction, Gold, Initial

if TYPE_CHECKING:
    from stasc.engine.memory import Limit


@dataclass(frozen=True)
class Stages:
    """Sampling, correcting, scoring and fine-tuning, bound to one model in memory and one seed.

    `engines` and `sampling` are by split name.
    """

    live: LiveModel
    chat: Chat
    engines: Mapping[str, HF]
    prompt: Prompt
    reward: pairing.Reward
    pairing: pairing.Pairing
    target: Correction | Initial | Gold
    tune: Full | Lora
    sampling: Mapping[str, Sampling]
    seed: int
    limit: Limit | None = None

    def ask(self, split: Split, n: int) -> list[Request]:
        """The prompts of y1[question][i] ~ model(. | x), one a question."""
        samples = range(self.sampling[split.name].n_init)
        return [
            self._request(
                self.prompt.ask(question.text),
                [self._noise(split, "initial", n, question, i) for i in samples],
                question.id,
            )
            for question in split.questions
        ]

    def ask_to_correct(self, split: Split, y1: Sequence[Sequence[Answer]], n: int) -> list[Request]:
        """The prompts of y2[question][i][k] ~ model(. | x, y1[question][i]), one an initial answer."""
        samples = range(self.sampling[split.name].n_corr)
        return [
            self._request(
                self.prompt.ask_to_correct(question.text, answer.text),
                [self._noise(split, "correction", n, question, i, k) for k in samples],
                f"{question.id} (the correction of initial answer {i})",
            )
            for question, answers in zip(split.questions, y1, strict=True)
            for i, answer in enumerate(answers)
        ]

    def batches(self, split: Split, requests: Sequence[Request]) -> list[list[Row]]:
        """Which answers are sampled together."""
        return self.engines[split.name].batches(requests)

    def answer(
        self,
        model: Model,
        split: Split,
        requests: Sequence[Request],
        batch: Sequence[Row],
        advance: Advance,
    ) -> list[Answer]:
        """The answer of each row of a batch."""
        sampling = self.sampling[split.name]
        decoding = Decoding(
            sampling.temperature, sampling.top_p, sampling.max_new_tokens, self.chat.stop_ids, ids=self.chat.ids
        )
        network = self.live.load(model)
        completions = self.engines[split.name].sample(network, requests, batch, decoding, advance, self.limit)
        return [Answer(self.chat.decode(c.ids), len(c.ids), c.truncated) for c in completions]

    def score(
        self, split: Split, y1: Sequence[Sequence[Answer]], y2: Sequence[Sequence[Sequence[Answer]]]
    ) -> list[Pair]:
        """The pairs of initial answers and corrections, with their rewards."""
        pair = self.pairing if split.name == "train" else pairing.own  # a test is of one answer and its correction
        return pairing.score(split, y1, y2, self.reward, pair)

    def finetune(
        self, start: Model, kept: Sequence[Pair], n: int, folder: Path, advance: Advance
    ) -> tuple[Model, Training]:
        """M_n, `start` trained on what was kept and written to `folder`."""
        examples = [self.example(pair) for pair in kept]
        seed = noise.noise_key(self.seed, "finetune", n) % 2**32
        return self.tune(self.live, start, examples, folder, seed, advance)

    def steps(self, kept: Sequence[Pair]) -> int:
        """Optimizer steps of that."""
        return steps(self.tune, len(kept))

    def example(self, pair: Pair) -> Example:
        """What is trained for a pair: an answer of it, in the conversation that it was sampled in."""
        conversation, answer = self.target.example(self.prompt, pair)
        completion = self.chat.completion(conversation, answer.text, ended=not answer.truncated)
        if not completion:
            raise ValueError(f"{pair.id}: {answer.text!r} has no token to train on")
        return Example(pair.id, self.chat.prompt(conversation), completion)

    def _request(self, conversation: Sequence[Message], keys: Sequence[int], name: str) -> Request:
        return Request(self.chat.prompt(conversation), tuple(keys), name)

    def _noise(self, split: Split, stage: str, n: int, question: Question, *sample: int) -> int:
        return noise.noise_key(self.seed, split.name, stage, n, question.id, *sample)
