"""The interface of rewards: a function that scores one answer or many, and attributes that it may have."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from stasc.settings.calls import parameters

log = logging.getLogger(__name__)


class Reward(Protocol):
    """Scores one answer."""

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Returns how good an answer is, in [0, 1], given the references, any of which is right.

        `answer` is the text exactly as sampled. An exception ends the run and names the answer; with
        `reward_errors=zero` the answer counts 0.
        """


class BatchedReward(Protocol):
    """Scores all answers of a stage in one call, as a reward model does best.

    An option is taken for batched if its first parameter is called `answers`.
    """

    def __call__(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> Sequence[float]:
        """Returns one number in [0, 1] for each answer, given the references of its question.

        An exception ends the run; with `reward_errors=zero` each answer is scored again by itself, in a batch of one.
        """


AnyReward = Reward | BatchedReward


class Attributes(Protocol):
    """The attributes that a reward may have, each of them optional."""

    def problem(self, references: Sequence[str]) -> str | None:
        """Returns why no answer can match the references; None if one can. Datasets skip such rows, or refuse them."""

    def key(self, answer: str) -> Hashable:
        """Returns a value that is equal for answers that say the same; None, "" or () for one that says nothing.

        Self-consistency and votes need it.
        """

    @property
    def unmarked(self) -> Callable[[str], bool] | None:
        """Tells whether an answer lacks the marker before the scored text; None if the whole answer is scored."""


def attribute(reward: Any, name: str) -> Callable[..., Any] | None:
    """Returns one of the `Attributes` of a reward, or of the function that a partial wraps; None if it has none."""
    reward = inner(reward)
    found = getattr(reward, name, None) or getattr(getattr(reward, "func", None), name, None)
    return found if callable(found) else None


def is_batched(reward: AnyReward) -> bool:
    """Returns whether a reward scores many answers in one call."""
    return parameters(reward)[:1] == ["answers"]


def batched(reward: AnyReward) -> Callable[[Sequence[str], Sequence[Sequence[str]]], list[float]]:
    """Returns a reward as a function of many answers. It raises a ValueError unless it has one number for each."""
    function: Any = reward
    many = is_batched(reward)

    def scored(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        values = function(answers, references) if many else map(function, answers, references)
        rewards = [float(value) for value in values]
        if len(rewards) != len(answers):
            raise ValueError(f"{len(rewards)} rewards for {len(answers)} answers; expected one for each")
        return rewards

    return scored


class ZeroOnError:
    """The policy `reward_errors=zero`: a batched reward that counts 0 where `reward` raises, and counts such answers.

    After an error in a batch, each of its answers is scored by itself.
    """

    def __init__(self, reward: AnyReward) -> None:
        self.reward, self._scored, self._batched = reward, batched(reward), is_batched(reward)
        self._failed, self._first = 0, ""

    def __call__(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        if self._batched:
            try:
                return self._scored(answers, references)
            except Exception as error:  # a reward is anybody's code
                log.warning(
                    "reward_errors=zero: %s: %s, for a batch of %d answers, which are now scored one by one",
                    *(type(error).__name__, error, len(answers)),
                )
        return [self._one(answer, some) for answer, some in zip(answers, references, strict=True)]

    def _one(self, answer: str, references: Sequence[str]) -> float:
        try:
            (value,) = self._scored([answer], [references])
        except Exception as error:
            if not self._failed:
                log.warning("reward_errors=zero: %s: %s, for %r, which counts 0", type(error).__name__, error, answer)
            self._failed += 1
            # Without the error's text, which may contain a secret, or differ each time.
            self._first = self._first or f"{type(error).__name__} for {answer[:60]!r}"
            return 0.0
        return value

    def pop_errors(self) -> dict[str, int | str] | None:
        """Returns the number of errors since the last call, and the first; None if there was none."""
        errors: dict[str, int | str] | None = {"answers": self._failed, "first": self._first} if self._failed else None
        self._failed, self._first = 0, ""
        return errors


def inner(reward: Any) -> Any:
    """Returns the reward itself, without the error policy around it."""
    return reward.reward if isinstance(reward, ZeroOnError) else reward
