"""Samples batches from a network: grouped by sequence length where the model requires it, split where memory does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from stasc.engines.engine import Completion, Decoding, Request, Row
from stasc.engines.hf import compiled, decode, prefill
from stasc.errors import NonFiniteError
from stasc.machine.oom import ran_out
from stasc.models import lengths
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.engines.hf.memory import Limit
    from stasc.models.model import Network


@dataclass(frozen=True)
class _Sample:
    """A sample in progress. The `ids` drawn so far are appended to its `prompt`."""

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    key: int
    name: str
    kind: int  # the class of its length, see `Lengths`
    new_tokens: int  # that can be drawn before the model must compute the sequence anew

    @property
    def group(self) -> tuple[int, int, int]:
        """What samples of one forward pass have in common."""
        return self.kind, self.new_tokens, len(self.ids)


class _Progress:
    """Reports progress, and can take it back."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0

    def __call__(self, k: int = 1, /) -> None:
        self.done += k
        self.advance(k)

    def undo(self) -> None:
        self.advance(-self.done)


@dataclass(frozen=True)
class Sampler:
    """Samples from one network, with the settings of `HF` and the memory limit of the run."""

    network: Network
    prefill_tokens: int
    compiled: bool
    limit: Limit

    @torch.inference_mode()
    def sample(
        self, requests: Sequence[Request], batch: Sequence[Row], decoding: Decoding, advance: Advance
    ) -> list[Completion]:
        """Returns the completion of each sample of a batch. Raises: as `Engine.sample`."""
        _check_context(self.network, requests, decoding)
        completions = [Completion((), truncated=True) for _ in batch]
        if not batch:
            return completions
        self.network.eval()
        longest = max(len(requests[request].prompt) for request, _ in batch)
        alike = prefill.lengths_of(self.network, longest + decoding.max_new_tokens)
        active = list(range(len(batch)))
        with compiled.layers(self.network) if self.compiled else nullcontext():
            while active:
                samples = [_begin(requests, batch[i], completions[i].ids, decoding, alike) for i in active]
                for group in lengths.grouped([sample.group for sample in samples]):
                    found = self._sample_group([samples[j] for j in group], decoding, advance)
                    for j, completion in zip(group, found, strict=True):
                        completions[active[j]] = completion
                active = [i for i in active if _is_cut(completions[i], decoding)]
                if active:
                    advance(-len(active))  # they were counted as ended
        return completions

    def _sample_group(self, samples: Sequence[_Sample], decoding: Decoding, advance: Advance) -> list[Completion]:
        """Continues samples of one group until they end or must be computed anew, as many at once as memory allows."""
        new_tokens = samples[0].new_tokens
        decoding, done = replace(decoding, max_new_tokens=new_tokens), list[Completion]()
        size = self.limit.of(self.network, [sample.prompt for sample in samples], new_tokens)
        shortest = min(len(sample.prompt) for sample in samples)
        while len(done) < len(samples):
            part = samples[len(done) : len(done) + size]
            progress = _Progress(advance)
            prompts, keys, ids = zip(*((sample.prompt, sample.key, sample.ids) for sample in part), strict=True)
            try:
                with lengths.beyond(self.network, shortest):
                    done += decode.sample_batch(
                        self.network, prompts, keys, decoding, progress, self.prefill_tokens, ids
                    )
                continue
            except decode.NonFiniteLogits as error:
                names = list(dict.fromkeys(part[row].name for row in error.rows))
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                raise NonFiniteError(f"the logits are not finite: {', '.join(names[:3])}{more}") from error
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                if len(part) == 1:
                    raise ValueError(
                        f"a prompt of {len(prompts[0])} tokens and its answer do not fit into the memory of "
                        f"{self.network.device}: lower sampling.max_new_tokens, set model.dtype=bfloat16, or use a "
                        "smaller model"
                    ) from error
            progress.undo()  # after the except block, when the error no longer keeps the tensors alive
            size = self.limit.lower(len(part) // 2)
        return done


def _begin(
    requests: Sequence[Request], row: Row, ids: tuple[int, ...], decoding: Decoding, alike: lengths.Lengths
) -> _Sample:
    request, prompt = requests[row[0]], requests[row[0]].prompt + ids
    new_tokens = alike.room(len(prompt), decoding.max_new_tokens - len(ids))
    name = request.name or f"request {row[0]}"
    return _Sample(prompt, ids, request.keys[row[1]], name, alike.kind(len(prompt)), new_tokens)


def _is_cut(completion: Completion, decoding: Decoding) -> bool:
    """Returns whether a completion ended before the token limit only because the model must compute it anew."""
    return completion.truncated and len(completion.ids) < decoding.max_new_tokens


def _check_context(network: Network, requests: Sequence[Request], decoding: Decoding) -> None:
    limit = getattr(network.config.get_text_config(), "max_position_embeddings", None)
    longest = max((len(request.prompt) for request in requests), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {longest} tokens and sampling.max_new_tokens={decoding.max_new_tokens} exceed the model's "
            f"context of {limit} tokens; lower sampling.max_new_tokens or drop the long question"
        )
