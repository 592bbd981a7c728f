"""What crosses modules: questions, answers, pairs of answers, and what an iteration leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Model = TypeVar("Model")


@dataclass(frozen=True)
class Question:
    """A question x_i with its reference answers, any of which is right."""

    id: str
    text: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """Questions that are used alike. `name` is part of the key of their sampling noise.

    `skipped` names the rows of the data that were left out because they are no questions.
    """

    name: str
    questions: tuple[Question, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A sampled answer: its text exactly as sampled, and how many tokens that took.

    `truncated` means that the token limit ended it, not the model. `tokens` counts the end token.
    """

    text: str
    tokens: int
    truncated: bool = False


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


@dataclass(frozen=True)
class Iteration(Generic[Model]):
    """What iteration n leaves: the model M_n, the pairs it scored, those it kept, and its test pairs.

    n = 0 is M_0 before any training: it has test pairs only.
    """

    n: int
    model: Model
    pairs: Sequence[Pair]
    kept: Sequence[Pair]
    test: Sequence[Pair]
