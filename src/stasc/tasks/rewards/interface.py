"""The interface of rewards: a function that scores one answer or many, and three attributes that it may have."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from stasc.settings.signature import first_parameter


class Reward(Protocol):
    """Scores one answer."""

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Returns how good an answer is, in [0, 1], given the references, any of which is right.

        `answer` is the text exactly as sampled. An exception ends the run and names the answer; with
        `reward_errors=zero` the answer counts 0.
        """
        ...


class BatchedReward(Protocol):
    """Scores all answers of a stage in one call, as a reward model does best.

    An option is taken for batched if its first parameter is called `answers`.
    """

    def __call__(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """Returns one number in [0, 1] for each answer, given the references of its question.

        An exception ends the run; with `reward_errors=zero` each answer is scored again by itself, in a batch of one.
        """
        ...


AnyReward = Reward | BatchedReward


class HasProblem(Protocol):
    """A reward that knows references which no answer can match. Datasets leave such rows out, or refuse them."""

    def problem(self, references: Sequence[str]) -> str | None:
        """Returns why no answer can be right, in words; None if one can."""
        ...


class HasKey(Protocol):
    """A reward that tells which answers say the same. Self-consistency and votes need it."""

    def key(self, answer: str) -> Hashable:
        """Returns a value that is equal for answers that say the same; None, "" or () for one that says nothing."""
        ...


class HasUnmarked(Protocol):
    """A reward that scores only the text after a marker. Its metrics include the share of answers without one."""

    @property
    def unmarked(self) -> Callable[[str], bool] | None:
        """Returns whether an answer lacks the marker; the attribute is None if the whole answer is scored."""
        ...


def attribute(reward: Any, name: str) -> Callable[..., Any] | None:
    """Returns an optional attribute of a reward, or of the function that a partial wraps; None if it has none."""
    found = getattr(reward, name, None) or getattr(getattr(reward, "func", None), name, None)
    return found if callable(found) else None


def is_batched(reward: AnyReward) -> bool:
    """Returns whether a reward scores many answers in one call."""
    return first_parameter(reward) == "answers"
