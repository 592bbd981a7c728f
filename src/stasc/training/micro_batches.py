"""Micro-batches: the gradient of one optimizer step, added up in as many passes as memory requires."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.amp import GradScaler

from stasc.machine.memory import ran_out
from stasc.models import lengths
from stasc.models.live import LiveModel
from stasc.models.model import Network
from stasc.prefix_tree import attention, probe
from stasc.prefix_tree.batch import Example, collate, logprobs, tree
from stasc.prefix_tree.trie import partition, tokens_per_pass
from stasc.tracking import fallback
from stasc.training import gradients
from stasc.training.losses import Loss
from stasc.training.optimization import Optimization

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MicroBatch:
    """Examples that one pass computed, and their summed negative log-likelihood in float64."""

    examples: Sequence[Example]
    nll: Tensor


class MicroBatches:
    """Splits optimizer steps into micro-batches of at most `most_tokens` tokens, a bound that is halved on OOM."""

    def __init__(
        self,
        network: Network,
        loss: Loss,
        settings: Optimization,
        live: LiveModel,
        examples: Sequence[Example],
        scaler: GradScaler,
    ) -> None:
        self.network, self.loss, self.scaler = network, loss, scaler
        self.device, self.dtype = live.device, live.dtype
        self.most_tokens = settings.micro_batch_tokens or tokens_per_pass(network)
        self.most_examples = settings.micro_batch_size
        longest = max(len(example.prompt) + len(example.completion) for example in examples)
        self.mask = _mask(network, live.dtype, longest) if settings.packing else None
        apart = self.mask is None and not probe.pads(network)
        self.lengths = lengths.Lengths(lengths.switches(network), apart)
        self.gradients: gradients.Kept = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sets up the network for `backward`."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        on_cpu = self.device.type == "cpu"  # CUDA's allocator keeps the memory of gradients by itself
        keeping = gradients.kept(self.network, self.gradients) if on_cpu else nullcontext()
        with keeping, attention.tree_attention(self.network, self.mask):
            yield

    def backward(self, step: Sequence[Example]) -> list[MicroBatch]:
        """Computes the gradient of a step's loss. Retries with smaller micro-batches after OOM."""
        while True:
            try:
                return [self._backward(some, step) for some in self._split(step)]
            except RuntimeError as error:
                if not ran_out(error) or self.most_tokens <= max(len(example.prompt) for example in step):
                    raise
            self.most_tokens //= 2  # outside the handler, whose error holds the tensors of the failed pass
            log.warning("out of memory: fine-tuning continues with micro-batches of %d tokens", self.most_tokens)
            fallback.report("smaller micro-batches", f"out of memory with {2 * self.most_tokens} tokens at once")
            self.network.zero_grad()
            self.gradients.clear()

    def _backward(self, some: Sequence[Example], step: Sequence[Example]) -> MicroBatch:
        batch = (tree(some, self.mask, self.device) if self.mask else collate(some)).to(self.device)
        mixed = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.dtype) if mixed else nullcontext():
            logp = logprobs(self.network, batch)
        self.scaler.scale(self.loss(logp, step)).backward()
        return MicroBatch(some, -logp.total())

    def _split(self, step: Sequence[Example]) -> Iterator[list[Example]]:
        whole = [example.prompt + example.completion[:-1] for example in step]
        for group in self.lengths.groups(map(len, whole)):
            for part in partition([whole[index] for index in group], self.most_tokens, self.most_examples):
                yield [step[group[index]] for index in part]


def _mask(network: Network, dtype: torch.dtype, longest: int) -> attention.Mask | None:
    """Returns the mask for packing examples of at most `longest` tokens; None if each takes a row of its own."""
    if probe.attends_to_all(network, longest):
        mask, fault = probe.probe(network, dtype)
    else:
        mask, fault = None, f"some layers of this model see fewer than the {longest} tokens of an example"
    if mask is None:
        fallback.report("no packing", fault)
    return mask
