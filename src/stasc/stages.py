"""The stages of Algorithm 1 on a real model: conversations in, answers and weights out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stasc.choices import pairing
from stasc.choices.target import Target
from stasc.engines import noise
from stasc.engines.engine import Completion, Decoding, Engine, Request, SampleIndex
from stasc.engines.stop import StopStrings
from stasc.models.chat import Chat, Refused
from stasc.models.live import LiveModel
from stasc.models.model import Model
from stasc.prefix_tree.batch import Example
from stasc.records import NOT_ASKED, Advance, Answer, OptimizerStep, Pair, Question, Split
from stasc.settings.sections import Sampling
from stasc.tasks.prompt import Conversations
from stasc.training.losses import Loss
from stasc.training.methods import Method

if TYPE_CHECKING:
    from stasc.tasks.rewards.interface import AnyReward
    from stasc.training.loop import Training


@dataclass(frozen=True)
class Stages:
    """The stages of Algorithm 1, bound to one model in memory and one seed. `batch` and `sampling` are by split name.

    `batch` is the most samples of a batch; None: the engine's own setting.
    """

    live: LiveModel
    chat: Chat
    engine: Engine
    prompt: Conversations
    reward: AnyReward
    pairing: pairing.Pairing
    target: Target
    tune: Method
    loss: Loss
    sampling: Mapping[str, Sampling]
    batch: Mapping[str, int | None]
    seed: int

    def ask(self, split: Split, n: int) -> list[Request]:
        """Returns the requests of y1[question][i] ~ model(. | x), one per question."""
        requests = []
        for question in split.questions:
            prompt = self.chat.prompt(self.prompt.ask(question.text))
            keys = tuple(self._noise(split, "initial", n, question, i) for i in range(self.sampling[split.name].n_init))
            requests.append(Request(prompt, keys, question.name))
        return requests

    def ask_to_correct(self, split: Split, y1: Sequence[Sequence[Answer]], n: int) -> list[Request]:
        """Returns the requests of y2[question][i][k] ~ model(. | x, y1[question][i]), one per initial answer.

        A request without keys stands for a conversation that the chat template refuses or that exceeds the context.
        """
        sampling = self.sampling[split.name]
        requests = []
        for question, answers in zip(split.questions, y1, strict=True):
            for i, answer in enumerate(answers):
                try:
                    prompt = self.chat.prompt(self.prompt.ask_to_correct(question.text, answer.text))
                except Refused:
                    prompt = None
                if prompt is None or not self._fits(len(prompt) + sampling.max_new_tokens):
                    requests.append(Request((), ()))
                    continue
                keys = tuple(self._noise(split, "correction", n, question, i, k) for k in range(sampling.n_corr))
                requests.append(Request(prompt, keys, f"{question.name}, the correction of initial answer {i}"))
        return requests

    def batches(self, split: Split, requests: Sequence[Request]) -> list[list[SampleIndex]]:
        """Splits the samples of all requests into batches."""
        return self.engine.batches(requests, self.batch[split.name])

    def answer(
        self, model: Model, split: Split, requests: Sequence[Request], batch: Sequence[SampleIndex], advance: Advance
    ) -> list[Answer]:
        """Samples the answers of a batch."""
        sampling = self.sampling[split.name]
        stop = StopStrings(tuple(sampling.stop), self.chat) if sampling.stop else None
        settings = sampling.temperature, sampling.top_p, sampling.max_new_tokens
        stopped = stop.met if stop else None
        decoding = Decoding(*settings, self.chat.stop_ids, stopped=stopped, allowed_ids=self.chat.ids)
        self.engine.load(model, self.live)
        completions = self.engine.sample(requests, batch, decoding, advance)
        return [self._answered(completion, stop) for completion in completions]

    def score(
        self, split: Split, y1: Sequence[Sequence[Answer]], y2: Sequence[Sequence[Sequence[Answer]]]
    ) -> list[Pair]:
        """Pairs initial answers with corrections and scores both."""
        pair = self.pairing if split.name == "train" else pairing.own  # an evaluation measures corrections as sampled
        return pairing.score(split, y1, y2, self.reward, pair)

    def finetune(
        self, start: Model, kept: Sequence[Pair], n: int, folder: Path, on_step: Callable[[OptimizerStep], None]
    ) -> tuple[Model, Training]:
        """Returns M_n: `start` fine-tuned on the kept pairs and written to `folder`."""
        from stasc.training.loop import finetune  # imported here: a run whose fine-tunings are stored needs none of it

        self.engine.release()
        examples = [self.example(pair) for pair in kept]
        seed = noise.noise_key(self.seed, "finetune", n) % 2**32
        return finetune(self.tune, self.loss, self.live, start, examples, folder, seed, on_step)

    def steps(self, kept: Sequence[Pair]) -> int:
        """Returns the number of optimizer steps of `finetune`."""
        return self.tune.steps(len(kept))

    def example(self, pair: Pair) -> Example:
        """Returns a pair's training example: its target answer, as sampled, in its conversation. Raises: Refused."""
        conversation, answer = self.target.example(self.prompt, pair)
        completion = answer.ids
        if completion is None:
            completion = self.chat.completion(conversation, answer.text, ended=not answer.truncated)
        return Example(pair.id, self.chat.prompt(conversation), completion, pair.r1, pair.r2)

    def unusable(self, pair: Pair) -> str | None:
        """Returns why a pair cannot be trained on, a key of `REASONS`; None if it can."""
        _, answer = self.target.example(self.prompt, pair)
        if answer == NOT_ASKED:
            return "prompt"
        if answer.truncated and self.tune.truncated == "drop":
            return "truncated"
        try:
            example = self.example(pair)
        except Refused:
            return "prompt"
        if not self._fits(len(example.prompt) + len(example.completion)):
            return "prompt"
        return None if example.completion else "empty"

    def _fits(self, tokens: int) -> bool:
        return self.live.context is None or tokens <= self.live.context

    def _answered(self, completion: Completion, stop: StopStrings | None) -> Answer:
        """Decodes a completion, cut before the first stop string."""
        ids, tokens = completion.ids, len(completion.ids)
        if stop and (cut := stop.cut(ids)):
            text, kept = cut
            return Answer(text, tokens, truncated=False, ids=(*kept, self.chat.end_id))
        text = self.chat.decode(ids)
        if completion.truncated:
            return Answer(text, tokens, truncated=True, ids=ids)
        content = ids[:-1] if ids and ids[-1] in self.chat.stop_ids else ids
        return Answer(text, tokens, truncated=False, ids=(*content, self.chat.end_id))

    def _noise(self, split: Split, stage: str, n: int, question: Question, *sample: int) -> int:
        return noise.noise_key(self.seed, split.name, stage, n, question.id, *sample)
