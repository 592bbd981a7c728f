"""What is the model trained to say? The paper's correction; for the baselines, the initial or the reference answer.

A baseline is Algorithm 1 with another target: what need not be sampled for it is passed through, not sampled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stasc.machine.sealed import digest
from stasc.records import Answer, Keyed, Pair, Split
from stasc.tasks.prompt import Message, Prompt

Sample = Callable[[Any, Split, int], Keyed[list[Answer]]]
Correct = Callable[[Any, Split, Any, int], Keyed[list[list[Answer]]]]


@dataclass(frozen=True)
class Correction:
    """The paper's: y2, given (x, y1)."""

    suffix: str

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        """Steps 1 and 2 of Algorithm 1 for this target, made of those that sample."""
        return sample, correct

    def example(self, prompt: Prompt, pair: Pair) -> tuple[list[Message], Answer]:
        """The conversation so far, and the answer that is trained on in it."""
        return prompt.ask_to_correct(pair.question.text, pair.y1.text), pair.y2


@dataclass(frozen=True)
class Nothing(Correction):
    """No training: the run is the evaluation of M_0, however many iterations are set."""


@dataclass(frozen=True)
class Initial:
    """STaR's (Zelikman et al., arXiv 2203.14465): y1, given x. In training, y2 is y1."""

    suffix: str

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        """Steps 1 and 2 of Algorithm 1 for this target, made of those that sample."""
        return sample, _twice(correct)

    def example(self, prompt: Prompt, pair: Pair) -> tuple[list[Message], Answer]:
        """The conversation so far, and the answer that is trained on in it."""
        return prompt.ask(pair.question.text), pair.y1


@dataclass(frozen=True)
class Gold:
    """Supervised fine-tuning: the first reference answer, given x. In training, y1 and y2 are that answer."""

    suffix: str
    marker: str | None  # stands before it, where the prompt asks for one

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        """Steps 1 and 2 of Algorithm 1 for this target, made of those that sample."""

        def reference(model: Any, split: Split, n: int) -> Keyed[list[Answer]]:
            if split.name != "train":
                return sample(model, split, n)
            texts = [" ".join(filter(None, (self.marker, question.references[0]))) for question in split.questions]
            asked = [[question.text, text] for question, text in zip(split.questions, texts, strict=True)]
            return Keyed(digest(asked), [[Answer(text, 0)] for text in texts])

        return reference, _twice(correct)

    def example(self, prompt: Prompt, pair: Pair) -> tuple[list[Message], Answer]:
        """The conversation so far, and the answer that is trained on in it."""
        return prompt.ask(pair.question.text), pair.y1


def _twice(correct: Correct) -> Correct:
    """Gives initial answers back as their own corrections, in training; held-out ones are corrected."""

    def same(model: Any, split: Split, y1: Any, n: int) -> Keyed[list[list[Answer]]]:
        return (
            correct(model, split, y1, n)
            if split.name != "train"
            else Keyed(y1.key, [[[a] for a in some] for some in y1])
        )

    return same
