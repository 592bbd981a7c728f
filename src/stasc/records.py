"""What crosses modules: questions, answers, pairs of answers, what an iteration leaves behind, and progress."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

Model = TypeVar("Model")
T = TypeVar("T")


class Keyed(list[T]):
    """What a stage gave, and the key of what it was derived from."""

    def __init__(self, key: str, items: Iterable[T]) -> None:
        super().__init__(items)
        self.key = key


class Advance(Protocol):
    """Is told that `k` more units of a stage's work are done."""

    def __call__(self, k: int = 1, /) -> None: ...


@dataclass(frozen=True)
class Question:
    """A question x_i with its reference answers, any of which is right."""

    id: str
    text: str
    references: tuple[str, ...]

    @property
    def name(self) -> str:
        """The id and how the text begins, for messages: an id may be a digest."""
        words = " ".join(self.text[:200].split())
        return f"{self.id} ({words if len(words) <= 60 else words[:57] + '...'!r})"


@dataclass(frozen=True)
class Split:
    """Questions that are used alike. `name` is part of the key of their sampling noise.

    `skipped` names the rows of the data that were left out because they are no questions, `repeated` those that have
    another row's question.
    """

    name: str
    questions: tuple[Question, ...]
    skipped: tuple[str, ...] = ()
    repeated: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A sampled answer: its text exactly as sampled, and how many tokens that took.

    `truncated` means that the token limit ended it, not the model. `tokens` counts the end token, and what a stop
    string cut off. `ids` are the sampled tokens that `text` stands for, the end-of-turn token last unless truncated:
    what is trained. They are empty where no answer could be asked for, and None for a text that no model sampled.
    """

    text: str
    tokens: int
    truncated: bool = False
    ids: tuple[int, ...] | None = None


NOT_ASKED = Answer("", 0, ids=())  # stands for a correction whose prompt the model cannot be given


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
        """Names the pair in messages."""
        of_another = f" of answer {self.seen}" if self.seen != self.i else ""
        return f"{self.question.id}, answer {self.i}, correction {self.k}{of_another}"

    @property
    def names(self) -> dict[str, str | int]:
        """Which pair it is, as files name it."""
        return {"question": self.question.id, "i": self.i, "seen": self.seen, "k": self.k}


class LeftOut(NamedTuple):
    """A pair that passed the filter and cannot be trained on, and why: one of `REASONS`."""

    pair: Pair
    reason: str


REASONS = {  # why a pair that passed the filter is left out
    "truncated": "the token limit ended the answer (finetune.truncated=drop)",
    "prompt": "the chat template refuses the conversation, or it does not fit into the model's context",
    "empty": "the reference answer has no token",
}


@dataclass(frozen=True)
class Iteration(Generic[Model]):
    """What iteration n leaves: the model M_n, the pairs it scored, those it trained on, and its test pairs.

    `left_out` are pairs that passed the filter and could not be trained on. n = 0 is M_0 before any training: it has
    test pairs only.
    """

    n: int
    model: Model
    pairs: Sequence[Pair]
    kept: Sequence[Pair]
    test: Sequence[Pair]
    left_out: Sequence[LeftOut] = ()
