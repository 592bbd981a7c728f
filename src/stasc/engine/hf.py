"""Sampling with a transformers model, on the CPU and on CUDA alike.

Prompts are sorted by length and sampled in batches. Noise comes from `noise.py`, so a batch decides no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stasc.engine import Completion, Decoding, Request, Row
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.engine.memory import Limit
    from stasc.model import Network


class Counted:
    """Tells of progress, and can take it back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.rows = advance, 0

    def __call__(self, k: int = 1, /) -> None:
        self.rows += k
        self.advance(k)

    def back(self) -> None:
        self.advance(-self.rows)


@dataclass(frozen=True)
class HF:
    """The engine of transformers.

    At most `batch_size` rows are sampled together, and `prefill_tokens` tokens of prompts computed at once. `compiled`
    has torch compile parts of layers.
    """

    batch_size: int
    prefill_tokens: int = 768
    compiled: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"engine.batch_size={self.batch_size}: expected at least 1")
        if self.prefill_tokens < 1:
            raise ValueError(f"engine.prefill_tokens={self.prefill_tokens}: expected at least 1")

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
        completions: dict[Row, Completion] = {}
        for batch in self.batches(requests):
            completions |= zip(batch, self.sample(model, requests, batch, decoding, advance), strict=True)
        return [[completions[r, s] for s in range(len(request.keys))] for r, request in enumerate(requests)]

    def batches(self, requests: Sequence[Request]) -> list[list[Row]]:
        """The rows of each batch, of like size; requests of like length, and those of one prompt, stand together."""
        order = sorted(range(len(requests)), key=lambda r: (len(requests[r].prompt), requests[r].prompt))
        rows = [(r, sample) for r in order for sample in range(len(requests[r].keys))]
        if not rows:
            return []
        size = math.ceil(len(rows) / math.ceil(len(rows) / self.batch_size))
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def sample(
        self,
        model: Network,
        requests: Sequence[Request],
        batch: Sequence[Row],
        decoding: Decoding,
        advance: Advance = lambda k=1, /: None,
        limit: Limit | None = None,
    ) -> list[Completion]:
        """The completion of each row of a batch, as many at once as memory allows.

        Raises: ValueError if a prompt and its answer do not fit into the model's context, or not into memory, or if
            torch cannot compile the model.
        """
        import torch

        from stasc.engine.decode import sample_batch
        from stasc.engine.memory import Limit
        from stasc.oom import ran_out

        check_context(model, requests, decoding)
        prompts = [requests[request].prompt for request, _ in batch]
        keys = [requests[request].keys[sample] for request, sample in batch]
        limit, done = limit or Limit(), list[Completion]()
        model.eval()
        with torch.inference_mode(), self._compiling(model):
            rows = limit.of(model, prompts, decoding.max_new_tokens) if batch else 0
            while len(done) < len(batch):
                part = slice(len(done), len(done) + rows)
                size = len(prompts[part])
                told = Counted(advance)
                try:
                    done += sample_batch(model, prompts[part], keys[part], decoding, told, self.prefill_tokens)
                    continue
                except RuntimeError as error:
                    if not ran_out(error):
                        raise
                    if size == 1:
                        raise ValueError(
                            f"a prompt of {len(prompts[len(done)])} tokens and its answer do not fit into the memory "
                            f"of {model.device}: lower sampling.max_new_tokens, set model.dtype=bfloat16, or take a "
                            "smaller model"
                        ) from error
                told.back()  # here, where the error no longer holds what was computed
                rows = limit.lower(size // 2)
        return done

    def _compiling(self, model: Network) -> AbstractContextManager[None]:
        if not self.compiled:
            return nullcontext()
        from stasc.engine import compiled

        return compiled.layers(model)


def check_context(model: Network, requests: Sequence[Request], decoding: Decoding) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(request.prompt) for request in requests), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={decoding.max_new_tokens} exceed the model's "
            f"context of {limit} tokens; lower sampling.max_new_tokens or drop the long question"
        )
