"""What the stages of Algorithm 1 compute on a real model: conversations in, answers and weights out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stasc.choices import pairing
from stasc.choices.target import Target
from stasc.engines import noise
from stasc.engines.engine import Completion, Decoding, Request, Row
from stasc.engines.hf.engine import HF
from stasc.engines.stop import StopStrings
from stasc.models.chat import Chat, Refused
from stasc.models.live import LiveModel
from stasc.models.model import Model
from stasc.prefix_tree.batch import Example
from stasc.records import NOT_ASKED, Advance, Answer, Pair, Question, Split
from stasc.settings.sections import Sampling
from stasc.tasks.prompt import Conversations, Message
from stasc.tasks.rewards import AnyReward
from stasc.training.methods import Full, Lora, Training, steps

if TYPE_CHECKING:
    from stasc.engines.hf.memory import Limit


@dataclass(frozen=True)
class Stages:
    """Sampling, correcting, scoring and fine-tuning, bound to one model in memory and one seed.

    `engines` and `sampling` are by split name.
    """

    live: LiveModel
    chat: Chat
    engines: Mapping[str, HF]
    prompt: Conversations
    reward: AnyReward
    pairing: pairing.Pairing
    target: Target
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
                question.name,
            )
            for question in split.questions
        ]

    def ask_to_correct(self, split: Split, y1: Sequence[Sequence[Answer]], n: int) -> list[Request]:
        """The prompts of y2[question][i][k] ~ model(. | x, y1[question][i]), one an initial answer.

        Where the model cannot be given the conversation, the request has no keys.
        """
        sampling = self.sampling[split.name]
        requests = []
        for question, answers in zip(split.questions, y1, strict=True):
            for i, answer in enumerate(answers):
                keys = [self._noise(split, "correction", n, question, i, k) for k in range(sampling.n_corr)]
                conversation = self.prompt.ask_to_correct(question.text, answer.text)
                try:
                    request = self._request(
                        conversation, keys, f"{question.name}, the correction of initial answer {i}"
                    )
                except Refused:
                    request = Request((), ())
                fits = self._fits(len(request.prompt) + sampling.max_new_tokens)
                requests.append(request if fits else Request((), ()))
        return requests

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
        stop = StopStrings(tuple(sampling.stop), self.chat) if sampling.stop else None
        decoding = Decoding(
            sampling.temperature,
            sampling.top_p,
            sampling.max_new_tokens,
            self.chat.stop_ids,
            stopped=stop.met if stop else None,
            ids=self.chat.ids,
        )
        network = self.live.load(model)
        completions = self.engines[split.name].sample(network, requests, batch, decoding, advance, self.limit)
        return [self._answered(completion, stop) for completion in completions]

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
        """What is trained for a pair: an answer of it, as it was sampled, in its conversation. Raises: Refused."""
        conversation, answer = self.target.example(self.prompt, pair)
        completion = answer.ids
        if completion is None:
            completion = self.chat.completion(conversation, answer.text, ended=not answer.truncated)
        return Example(pair.id, self.chat.prompt(conversation), completion)

    def unusable(self, pair: Pair) -> str | None:
        """Why a pair cannot be trained on, one of `REASONS`; None if it can."""
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
        """The answer that sampled tokens are, up to a stop string."""
        ids, tokens = completion.ids, len(completion.ids)
        if stop and (cut := stop.cut(ids)):
            text, kept = cut
            return Answer(text, tokens, truncated=False, ids=(*kept, self.chat.end_id))
        text = self.chat.decode(ids)
        if completion.truncated:
            return Answer(text, tokens, truncated=True, ids=ids)
        said = ids[:-1] if ids and ids[-1] in self.chat.stop_ids else ids
        return Answer(text, tokens, truncated=False, ids=(*said, self.chat.end_id))

    def _request(self, conversation: Sequence[Message], keys: Sequence[int], name: str) -> Request:
        return Request(self.chat.prompt(conversation), tuple(keys), name)

    def _noise(self, split: Split, stage: str, n: int, question: Question, *sample: int) -> int:
        return noise.noise_key(self.seed, split.name, stage, n, question.id, *sample)
