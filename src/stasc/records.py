"""Records that cross modules: questions, answers, pairs of answers and iterations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

Model = TypeVar("Model")
T = TypeVar("T")


class Keyed(list[T]):
    """The output of a stage, with the store key that stands for everything it was derived from."""

    def __init__(self, key: str, items: Iterable[T]) -> None:
        super().__init__(items)
        self.key = key


class Advance(Protocol):
    """A progress callback: `k` more units of a stage's work are done."""

    def __call__(self, k: int = 1, /) -> None: ...


@dataclass(frozen=True)
class Question:
    """A question x_i with its reference answers, any of which is right."""

    id: str
    text: str
    references: tuple[str, ...]

    @property
    def name(self) -> str:
        """Returns the id and the beginning of the text, for messages: an id may be a digest."""
        words = " ".join(self.text[:200].split())
        return f"{self.id} ({words if len(words) <= 60 else words[:57] + '...'!r})"


@dataclass(frozen=True)
class Split:
    """The questions of a split. `name` is part of the key of their sampling noise.

    `skipped` has the rows of the data that are no questions: a digest of each, and what is wrong with it. `repeated`
    describes the rows with a question that another row has.
    """

    name: str
    questions: tuple[Question, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A sampled answer: its text exactly as sampled, and its number of tokens.

    `truncated`: the token limit ended it, not the model. `tokens` includes the end token and what a stop string cut
    off. `ids` are the tokens to train, with the end-of-turn token last unless truncated; empty if the model was not
    asked, None if the text was not sampled from a model.
    """

    text: str
    tokens: int
    truncated: bool = False
    ids: tuple[int, ...] | None = None


NOT_ASKED = Answer("", 0, ids=())  # a correction whose prompt does not fit, or that the template refuses


@dataclass(frozen=True)
class Pair:
    """A triple (x, y1, y2) with the rewards r1 and r2 of its two answers, in [0, 1].

    `i` is the index of y1 among the question's initial answers; (`seen`, `k`) names y2: the k-th correction sampled
    after seeing initial answer `seen`. With own pairing `seen` equals `i`. All indices start at 0.
    """

    question: Question
    i: int
    seen: int
    k: int
    y1: Answer
    y2: Answer
    r1: float
    r2: float

    @property
    def id(self) -> str:
        """Returns the pair's name for messages."""
        of_another = f" of answer {self.seen}" if self.seen != self.i else ""
        return f"{self.question.id}, answer {self.i}, correction {self.k}{of_another}"

    @property
    def names(self) -> dict[str, str | int]:
        """Returns the fields that identify the pair in files."""
        return {"question": self.question.id, "i": self.i, "seen": self.seen, "k": self.k}


class LeftOut(NamedTuple):
    """A pair that passed the filter but cannot be trained on, with one of `REASONS`."""

    pair: Pair
    reason: str


REASONS = {  # why a pair that passed the filter is left out
    "truncated": "the token limit ended the answer (finetune.truncated=drop)",
    "prompt": "the chat template refuses the conversation, or it does not fit into the model's context",
    "empty": "the reference answer has no token",
}


@dataclass(frozen=True)
class OptimizerStep:
    """The figures of one optimizer step of a fine-tuning.

    `loss` is the mean negative log-likelihood per trained token, and `grad_norm` the norm before clipping; None if not
    finite. `tokens` are those trained, `input_tokens` those of prompts and completions, `epoch` the passes over the
    examples since the fine-tuning began.
    """

    loss: float | None
    learning_rate: float
    grad_norm: float | None
    tokens: int
    input_tokens: int
    epoch: float
    seconds: float


@dataclass(frozen=True)
class Iteration(Generic[Model]):
    """The results of iteration n: the model M_n, all training pairs, those trained on, and the test pairs.

    `left_out` are pairs that passed the filter but cannot be trained on. n = 0 is M_0 before any training, with test
    pairs only.
    """

    n: int
    model: Model
    pairs: Sequence[Pair]
    kept: Sequence[Pair]
    test: Sequence[Pair]
    left_out: Sequence[LeftOut] = ()
