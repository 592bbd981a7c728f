"""Sampling: what an engine is asked for and what it gives."""

from __future__ import annotations

from dataclasses import dataclass

Row = tuple[int, int]  # (request, sample): which answer


@dataclass(frozen=True)
class Request:
    """A prompt, and one noise key per answer that is wanted for it. `name` stands for it in messages."""

    prompt: tuple[int, ...]
    keys: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class Completion:
    """Sampled token ids, the stop token included unless the token limit ended them (`truncated`)."""

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Decoding:
    """How tokens are drawn: temperature 0 is greedy, top_p 1 is the whole distribution.

    `ids` are those that have a text, and so may be drawn; None: all that the model has.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    ids: frozenset[int] | None = None
