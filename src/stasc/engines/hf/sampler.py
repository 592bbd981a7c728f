"""Samples completions from a network in memory, in groups and parts that it and memory can take."""

from __future__ import annotations

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
from stasc.models.model import Network
from stasc.records import Advance


class _Sample(NamedTuple):
    """A sample to continue. The `ids` drawn so far are appended to its `prompt`."""

    prompt: tuple[int, ...]
    key: int
    ids: tuple[int, ...]
    name: str


@dataclass(frozen=True)
class Sampler:
    """A network with the settings of `HF`. `limit` is the most samples at once after running out of memory."""

    network: Network
    prefill_tokens: int
    compiled: bool
    limit: Limit

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[Request], batch: Sequence[SampleIndex], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        """Returns the completion of each sample of a batch.

        Samples are grouped by sequence length where the model requires it, and split where memory does.
        """
        most = decoding.max_new_tokens
        _check_context(self.network, requests, most)
        if not batch:
            return []
        self.network.eval()
        alike = prefill.lengths_of(self.network, max(len(requests[r].prompt) for r, _ in batch) + most)
        completions = [Completion((), truncated=True) for _ in batch]
        active = list(range(len(batch)))

        def kind(i: int) -> tuple[int, int, int]:
            """Returns what samples of one pass share: class of length, tokens until recomputed, tokens drawn."""
            drawn = len(completions[i].ids)
            length = len(requests[batch[i][0]].prompt) + drawn
            return alike.kind(length), alike.capacity(length, most - drawn), drawn

        with compiled.layers(self.network) if self.compiled else nullcontext():
            while active:
                kinds = [kind(i) for i in active]
                for group in lengths.grouped(kinds):
                    indices = [active[j] for j in group]
                    samples = [_sample(requests, batch[i], completions[i].ids) for i in indices]
                    part = replace(decoding, max_new_tokens=kinds[group[0]][1])
                    continued = self._continue(samples, part, advance)
                    for i, completion in zip(indices, continued, strict=True):
                        completions[i] = completion
                active = [i for i in active if completions[i].truncated and len(completions[i].ids) < most]
                if active:
                    advance(-len(active))  # they were counted as ended
        return completions

    def _continue(self, samples: Sequence[_Sample], decoding: Decoding, advance: Advance) -> list[Completion]:
        """Continues samples of one kind until they end or must be computed anew, as many at once as memory allows."""
        done: list[Completion] = []
        size = self.limit.of(self.network, [sample.prompt for sample in samples], decoding.max_new_tokens)
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
                with lengths.beyond(self.network, shortest):
                    done += decode.sample_batch(
                        self.network, prompts, keys, decoding, progress, self.prefill_tokens, ids
                    )
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
                        f"{self.network.device}: lower sampling.max_new_tokens, set model.dtype=bfloat16, or use a "
                        "smaller model"
                    ) from error
            advance(-sum(ended))  # after the except block, when the error no longer keeps the tensors alive
            size = self.limit.lower(len(part) // 2)
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
