"""Sampling: what an engine is asked for and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

Row = tuple[int, int]  # (request, sample): which answer


@dataclass(frozen=True)
class Request:
    """A prompt, and one noise key per answer that is wanted for it. `name` stands for it in messages."""

    prompt: tuple[int, ...]
    keys: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class Completion:
    """Sampled token ids, with the stop token or the stop string that ended them; `truncated` by the token limit."""

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: temperature 0 is greedy, top_p 1 is the whole distribution.

    A token of `stop_ids` ends an answer, and so does `stopped`, which is asked after every token if it is given. `ids`
    are those that have a text, and so may be drawn; None: all that the model has.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    stopped: Callable[[Sequence[int]], bool] | None = None
    ids: frozenset[int] | None = None

    @cached_property
    def drawable(self) -> frozenset[int] | None:
        """The ids that may be drawn, one object for all steps of an answer; None: all that the model has."""
        return None if self.ids is None else self.ids | self.stop_ids
