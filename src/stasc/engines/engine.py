"""The interface of engines, which sample completions from a model, and what they are given and return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from stasc.models.model import Model
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.models.live import LiveModel

SampleIndex = tuple[int, int]  # the index of a request, and of one of its samples


@dataclass(frozen=True)
class Request:
    """A prompt, and one noise key per wanted sample. Messages call it by its `name`."""

    prompt: tuple[int, ...]
    keys: tuple[int, ...]
    name: str = ""


@dataclass(frozen=True)
class Completion:
    """Sampled token ids, including the stop token or stop string; `truncated` if the token limit ended them."""

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True)
class Decoding:
    """Sampling parameters. Temperature 0 is greedy; top_p 1 samples from the whole vocabulary.

    Args:
        stop_ids: tokens that end an answer.
        stopped: returns whether the ids of an answer end in a stop string; called after every token.
        allowed_ids: tokens that the tokenizer can decode; no other is sampled. None: the model's whole vocabulary.
    """

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: frozenset[int]
    stopped: Callable[[Sequence[int]], bool] | None = None
    allowed_ids: frozenset[int] | None = None

    @cached_property
    def drawable(self) -> frozenset[int] | None:
        """The tokens that may be sampled, as one object that caches can be keyed by; None: all."""
        return None if self.allowed_ids is None else self.allowed_ids | self.stop_ids


class Engine(Protocol):
    """Samples completions. One object serves a whole run; `_target_` of the config group `engine` builds it.

    A run calls `load`, then `sample` for each batch, and `release` before it fine-tunes and when it ends.
    """

    def load(self, model: Model, live: LiveModel) -> None:
        """Makes `model` the one to sample from. Called before every batch: fast if the model is loaded already.

        An engine in this process takes the network from `live.load(model)` and keeps no reference to an earlier one.
        An engine in another process frees this one's memory with `live.release()` and reads `live.folders(model)`.

        Raises: OSError or ValueError if the weights cannot be read.
        """

    def batches(self, requests: Sequence[Request], size: int | None) -> list[list[SampleIndex]]:
        """Splits the samples of all requests into batches, each of which is sampled and committed together.

        Depends on its arguments alone: a resumed stage skips the batches that were committed.

        Args:
            size: most samples of a batch; None: the engine's own setting.
        """

    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        """Returns the completion of each sample of a batch, in order.

        The result depends on a sample's prompt and noise key, not on the batch or its order.

        Args:
            requests: all requests of the stage; `batch` indexes into them.
            advance: called with the number of samples that ended; negative to take some back.
        Raises: ValueError if a prompt and its answer exceed the context or the memory; NonFiniteError if logits are
            not finite.
        """

    def release(self) -> None:
        """Frees the model, so that its memory can be used for something else. `load` may follow."""


def complete(
    engine: Engine, requests: Sequence[Request], decoding: Decoding, advance: Advance = lambda k=1, /: None
) -> list[list[Completion]]:
    """Returns the completions of each request, one per key, from the model that the engine has loaded."""
    found: dict[SampleIndex, Completion] = {}
    for batch in engine.batches(requests, None):
        found |= zip(batch, engine.sample(requests, batch, decoding, advance), strict=True)
    return [[found[r, s] for s in range(len(request.keys))] for r, request in enumerate(requests)]
