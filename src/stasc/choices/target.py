"""Step 4, the target: what the model is trained to say.

The paper trains the correction. Other targets are baselines: Algorithm 1 with another answer to train. They sample no
more than they need, and pass an answer through where a stage is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from stasc.machine.sealed import digest
from stasc.records import Answer, Keyed, Pair, Split
from stasc.tasks.prompt import Conversations, Message

Sample = Callable[[Any, Split, int], Keyed[list[Answer]]]  # (model, split, n) -> y1[question][i]
Correct = Callable[[Any, Split, Any, int], Keyed[list[list[Answer]]]]  # (model, split, y1, n) -> y2[question][i][k]


class Target(Protocol):
    """Chooses the answer that is trained, and the answers that are sampled for it."""

    @property
    def trains(self) -> bool:
        """Whether the run trains at all; if not, it evaluates M_0, whatever `iterations` says."""

    @property
    def corrects(self) -> bool:
        """Whether corrections are sampled for training; if not, y2 is y1 in the training pairs."""

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        """Returns steps 1 and 2 for this target: the given ones, or ones that pass training answers through.

        Held-out questions (`split.name != "train"`) must be sampled and corrected as given. Answers that are not
        sampled come as a `Keyed` list, whose key is a digest of everything that decides them.
        """

    def example(self, prompt: Conversations, pair: Pair) -> tuple[list[Message], Answer]:
        """Returns the conversation so far, and the answer that is trained as its next turn."""


@dataclass(frozen=True)
class Correction:
    """The paper's target: y2, given (x, y1)."""

    trains: ClassVar[bool] = True
    corrects: ClassVar[bool] = True

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        return sample, correct

    def example(self, prompt: Conversations, pair: Pair) -> tuple[list[Message], Answer]:
        return prompt.ask_to_correct(pair.question.text, pair.y1.text), pair.y2


@dataclass(frozen=True)
class Nothing(Correction):
    """No training: the run is the evaluation of M_0."""

    trains: ClassVar[bool] = False


@dataclass(frozen=True)
class Initial:
    """STaR's target (Zelikman et al., arXiv 2203.14465): y1, given x. In training, y2 is y1."""

    trains: ClassVar[bool] = True
    corrects: ClassVar[bool] = False

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        return sample, _uncorrected(correct)

    def example(self, prompt: Conversations, pair: Pair) -> tuple[list[Message], Answer]:
        return prompt.ask(pair.question.text), pair.y1


@dataclass(frozen=True)
class Gold(Initial):
    """Supervised fine-tuning: the first reference answer, given x. In training, y1 and y2 are that answer."""

    marker: str | None  # written before the answer, where the prompt asks for one

    def stages(self, sample: Sample, correct: Correct) -> tuple[Sample, Correct]:
        def reference(model: Any, split: Split, n: int) -> Keyed[list[Answer]]:
            if split.name != "train":
                return sample(model, split, n)
            texts = [" ".join(filter(None, (self.marker, question.references[0]))) for question in split.questions]
            asked = [[question.text, text] for question, text in zip(split.questions, texts, strict=True)]
            return Keyed(digest(asked), [[Answer(text, 0)] for text in texts])

        return reference, _uncorrected(correct)


def _uncorrected(correct: Correct) -> Correct:
    """Returns a step 2 that repeats the initial answers of training questions, and corrects those of held-out ones."""

    def same(model: Any, split: Split, y1: Any, n: int) -> Keyed[list[list[Answer]]]:
        if split.name != "train":
            return correct(model, split, y1, n)
        return Keyed(y1.key, [[[answer] for answer in answers] for answers in y1])

    return same
