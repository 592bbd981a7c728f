"""The error policy `reward_errors=zero`: an answer for which the reward raises counts 0."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from stasc.tasks.rewards.interface import AnyReward, is_batched

log = logging.getLogger(__name__)


class ZeroOnError:
    """A reward that counts 0 where `reward` raises, and counts the answers for which it did."""

    def __init__(self, reward: AnyReward) -> None:
        self.reward, self._batched = reward, is_batched(reward)
        self._failed, self._first = 0, ""

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        try:
            (value,) = self._scored([answer], [references])
        except Exception as error:  # a reward is anybody's code
            if not self._failed:
                log.warning("reward_errors=zero: %s: %s, for %r, which counts 0", type(error).__name__, error, answer)
            self._failed += 1
            # Without the error's text, which may contain a secret, or differ each time.
            self._first = self._first or f"{type(error).__name__} for {answer[:60]!r}"
            return 0.0
        return value

    def each(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Returns the rewards of all answers; after an error in a batch, each answer is scored by itself."""
        if self._batched:
            try:
                return self._scored(answers, references)
            except Exception as error:
                log.warning(
                    "reward_errors=zero: %s: %s, for a batch of %d answers, which are now scored one by one",
                    *(type(error).__name__, error, len(answers)),
                )
        return [self(answer, some) for answer, some in zip(answers, references, strict=True)]

    def pop_errors(self) -> dict[str, int | str] | None:
        """Returns the number of errors since the last call, and the first; None if there was none."""
        errors: dict[str, int | str] | None = {"answers": self._failed, "first": self._first} if self._failed else None
        self._failed, self._first = 0, ""
        return errors

    def _scored(self, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        if self._batched:
            return batch(self.reward, answers, references)
        return [float(self.reward(answers[0], references[0]))]  # type: ignore[arg-type]


def batch(reward: Any, answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns what a batched reward gives. Raises: ValueError unless it is one number for each answer."""
    values = [float(value) for value in reward(answers, references)]
    if len(values) != len(answers):
        raise ValueError(f"{len(values)} rewards for {len(answers)} answers; expected one for each")
    return values


def inner(reward: Any) -> Any:
    """Returns the reward itself, without the error policy around it."""
    return reward.reward if isinstance(reward, ZeroOnError) else reward
