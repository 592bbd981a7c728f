"""The engine that samples with transformers in this process, on the CPU and on CUDA alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from stasc.engines.engine import Completion, Decoding, Request, SampleIndex
from stasc.engines.hf import compiled, decode, prefill
from stasc.engines.hf.memory import Limit
from stasc.errors import NonFiniteError
from stasc.machine.memory import ran_out
from stasc.models import lengths
from stasc.models.checkpoint import context_limit
from stasc.models.live import LiveModel
from stasc.models.model import Model, Network
from stasc.records import Advance
from stasc.settings.check import expect


class _Sample(NamedTuple):
    """A sample to continue. The `ids` drawn so far are appended to its `prompt`."""

    prompt: tuple[int, ...]
    key: int
    ids: tuple[int, ...]
    name: str


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
        self._network: Network | None = None
        self._limit = Limit()  # lasts for the run

    def load(self, model: Model, live: LiveModel) -> None:
        """Samples from the network in memory, see `Engine.load`."""
        self._network = None  # frees the network before the next is loaded: two may not fit into memory
        self._network = live.load(model)

    def batches(self, requests: Sequence[Request], size: int | None) -> list[list[SampleIndex]]:
        """Sorts the samples by prompt, shortest first, and splits them into batches of nearly equal size."""
        order = sorted(range(len(requests)), key=lambda r: (len(requests[r].prompt), requests[r].prompt))
        rows = [(r, sample) for r in order for sample in range(len(requests[r].keys))]
        if not rows:
            return []
        size = math.ceil(len(rows) / math.ceil(len(rows) / (size or self.batch_size)))
        return [rows[first : first + size] for first in range(0, len(rows), size)]

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        """Returns the completion of each sample of a batch, see `Engine.sample`.

        Samples are grouped by sequence length where the model requires it, and split where memory does.
        """
        assert self._network is not None, "load comes before sample"
        most = decoding.max_new_tokens
        _check_context(self._network, requests, most)
        if not batch:
            return []
        self._network.eval()
        alike = prefill.lengths_of(self._network, max(len(requests[r].prompt) for r, _ in batch) + most)
        completions = [Completion((), truncated=True) for _ in batch]
        active = list(range(len(batch)))

        def kind(i: int) -> tuple[int, int, int]:
            """Returns what samples of one pass share: class of length, tokens until recomputed, tokens drawn."""
            drawn = len(completions[i].ids)
            length = len(requests[batch[i][0]].prompt) + drawn
            return alike.kind(length), alike.capacity(length, most - drawn), drawn

        with compiled.layers(self._network) if self.compiled else nullcontext():
            while active:
                kinds = [kind(i) for i in active]
                for group in lengths.grouped(kinds):
                    indices = [active[j] for j in group]
                    samples = [_sample(requests, batch[i], completions[i].ids) for i in indices]
                    part = replace(decoding, max_new_tokens=kinds[group[0]][1])
                    continued = self._continue(self._network, samples, part, advance)
                    for i, completion in zip(indices, continued, strict=True):
                        completions[i] = completion
                active = [i for i in active if completions[i].truncated and len(completions[i].ids) < most]
                if active:
                    advance(-len(active))  # they were counted as ended
        return completions

    def release(self) -> None:
        """Drops the reference to the network, which stays in memory for fine-tuning."""
        self._network = None

    def _continue(
        self, network: Network, samples: Sequence[_Sample], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        """Continues samples of one kind until they end or must be computed anew, as many at once as memory allows."""
        done: list[Completion] = []
        size = self._limit.of(network, [sample.prompt for sample in samples], decoding.max_new_tokens)
        shortest = min(len(sample.prompt) for sample in samples)
        ended: list[int] = []  # samples of the current part, as reported

        def progress(k: int = 1, /) -> None:
            ended.append(k)
            advance(k)

        while len(done) < len(samples):
            part = samples[len(done) : len(done) + size]
            ended.clear()
            prompts, keys, ids, names = zip(*part, strict=True)
            try:
                with lengths.beyond(network, shortest):
                    done += decode.sample_batch(network, prompts, keys, decoding, progress, self.prefill_tokens, ids)
                continue
            except decode.NonFiniteLogits as error:
                wrong = list(dict.fromkeys(names[row] for row in error.rows))
                more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
                raise NonFiniteError(f"the logits are not finite: {', '.join(wrong[:3])}{more}") from error
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if len(part) == 1:
                    raise ValueError(
                        f"a prompt of {len(prompts[0])} tokens and its answer do not fit into the memory of "
                        f"{network.device}: lower sampling.max_new_tokens, set model.dtype=bfloat16, or use a "
                        "smaller model"
                    ) from error
            advance(-sum(ended))  # after the except block, when the error no longer keeps the tensors alive
            size = self._limit.lower(len(part) // 2)
        return done


def _sample(requests: Sequence[Request], row: SampleIndex, ids: tuple[int, ...]) -> _Sample:
    request = requests[row[0]]
    return _Sample(request.prompt + ids, request.keys[row[1]], ids, request.name or f"request {row[0]}")


def _check_context(network: Network, requests: Sequence[Request], max_new_tokens: int) -> None:
    limit = context_limit(network.config)
    longest = max((len(request.prompt) for request in requests), default=0)
    if limit is not None and longest + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={max_new_tokens} exceed the model's "
            f"context of {limit} tokens; lower sampling.max_new_tokens or drop the long question"
        )
