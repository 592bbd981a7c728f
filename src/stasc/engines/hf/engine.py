"""The engine that samples with transformers in this process, on the CPU and on CUDA alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stasc.engines.engine import Completion, Decoding, Request, SampleIndex
from stasc.models.model import Model
from stasc.records import Advance
from stasc.settings.check import expect

if TYPE_CHECKING:  # torch is not imported before all settings are checked
    from stasc.engines.hf.memory import Limit
    from stasc.engines.hf.sampler import Sampler
    from stasc.models.live import LiveModel


@dataclass
class HF:
    """Samples with transformers. Common prefixes are computed once; samples share a KV cache until they diverge.

    Args:
        batch_size: most samples of a batch.
        prefill_tokens: most prompt tokens of one forward pass.
        compiled: whether torch compiles norms and MLPs.
    """

    batch_size: int
    prefill_tokens: int = 768
    compiled: bool = False

    def __post_init__(self) -> None:
        expect("engine.batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        expect("engine.prefill_tokens", self.prefill_tokens, self.prefill_tokens >= 1, "at least 1")
        self._sampler: Sampler | None = None
        self._limit: Limit | None = None  # lasts for the run

    def load(self, model: Model, live: LiveModel) -> None:
        """Samples from the network in memory, see `Engine.load`."""
        from stasc.engines.hf.memory import Limit
        from stasc.engines.hf.sampler import Sampler

        self._limit = self._limit or Limit()
        self._sampler = None  # frees the network before the next is loaded: two may not fit into memory
        self._sampler = Sampler(live.load(model), self.prefill_tokens, self.compiled, self._limit)

    def batches(self, requests: Sequence[Request], size: int | None) -> list[list[SampleIndex]]:
        """Sorts the samples by prompt, shortest first, and splits them into batches of nearly equal size."""
        order = sorted(range(len(requests)), key=lambda r: (len(requests[r].prompt), requests[r].prompt))
        rows = [(r, sample) for r in order for sample in range(len(requests[r].keys))]
        if not rows:
            return []
        size = math.ceil(len(rows) / math.ceil(len(rows) / (size or self.batch_size)))
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        """Returns the completion of each sample of a batch, see `Engine.sample`."""
        assert self._sampler is not None, "load comes before sample"
        return self._sampler.sample(requests, batch, decoding, advance)

    def release(self) -> None:
        """Drops the reference to the network, which stays in memory for fine-tuning."""
        self._sampler = None
