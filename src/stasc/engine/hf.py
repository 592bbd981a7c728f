"""Sampling with a transformers model, on the CPU and on CUDA alike.

Prompts are sorted by length and sampled in batches. Noise comes from `noise.py`, so a batch decides no noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stasc.engine import Completion, Decoding, Request
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.model import Network


@dataclass(frozen=True)
class HF:
    """The engine of transformers: `batch_size` rows are sampled together."""

    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"engine.batch_size={self.batch_size}: expected at least 1")

    def __call__(
        self,
        model: Network,
        requests: Sequence[Request],
        decoding: Decoding,
        advance: Advance = lambda k=1: None,
    ) -> list[list[Completion]]:
        """Completions of each request, one per key, in order. `advance` is told how many rows have ended.

        Raises: ValueError if a prompt and its answer do not fit into the model's context.
        """
        import torch

        from stasc.engine.decode import sample_batch

        check_context(model, requests, decoding)
        completions: dict[tuple[int, int], Completion] = {}
        model.eval()
        with torch.inference_mode():
            for rows in self._batches(requests):
                prompts = [requests[request].prompt for request, _ in rows]
                keys = [requests[request].keys[sample] for request, sample in rows]
                completions |= zip(rows, sample_batch(model, prompts, keys, decoding, advance), strict=True)
        return [[completions[r, s] for s in range(len(request.keys))] for r, request in enumerate(requests)]

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, int]]]:
        """(request, sample) of each batch; requests of like length, and those of one prompt, stand together."""
        order = sorted(range(len(requests)), key=lambda r: (len(requests[r].prompt), requests[r].prompt))
        rows = [(r, sample) for r in order for sample in range(len(requests[r].keys))]
        for first in range(0, len(rows), self.batch_size):
            yield rows[first : first + self.batch_size]


def check_context(model: Network, requests: Sequence[Request], decoding: Decoding) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(request.prompt) for request in requests), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={decoding.max_new_tokens} exceed the model's "
            f"context of {limit} tokens; lower sampling.max_new_tokens or drop the long question"
        )
