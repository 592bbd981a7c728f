"""Log-likelihoods of the trained tokens of a batch.

Shapes: B rows of K logits over V tokens, E edges of the prefix tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stasc.prefix_tree.batch import Batch, Example


@dataclass(frozen=True)
class Logprobs:
    """The log-likelihood of each trained token of `batch`, computed once per edge of the prefix tree.

    Every method counts an edge once for each example that has it.
    """

    batch: Batch
    edges_E: Tensor  # float32 or wider

    @property
    def examples(self) -> Sequence[Example]:
        """The examples of the micro-batch, in the order of all results."""
        return self.batch.examples

    def tokens(self) -> tuple[Tensor, ...]:
        """Returns one tensor per example: the log-likelihoods of its trained tokens."""
        tokens = self.edges_E[self.batch.edges.to(self.edges_E.device)]
        found: tuple[Tensor, ...] = tokens.split([len(example.completion) for example in self.examples])
        return found

    def by_example(self) -> Tensor:
        """Returns the log-likelihood of each example's whole completion."""
        return torch.stack([tokens.sum() for tokens in self.tokens()])

    def weighted(self, weights: Sequence[float]) -> Tensor:
        """Returns the sum over trained tokens, each times the weight of its example.

        The weights of an edge are added up in float64 on the CPU, in a fixed order, before they meet the edge.
        """
        edges = self._weights(weights).to(self.edges_E.device)
        return (self.edges_E * edges.to(self.edges_E.dtype)).sum()

    def total(self) -> Tensor:
        """Returns the sum over trained tokens in float64, without gradient."""
        counts = self._weights([1.0] * len(self.examples)).to(self.edges_E.device)
        return (self.edges_E.detach().double() * counts).sum()

    def _weights(self, weights: Sequence[float]) -> Tensor:
        lengths = torch.tensor([len(example.completion) for example in self.examples])
        by_token = torch.tensor(weights, dtype=torch.float64).repeat_interleave(lengths)
        return torch.zeros(len(self.edges_E), dtype=torch.float64).index_add_(0, self.batch.edges, by_token)


def logprobs(network: nn.Module, batch: Batch) -> Logprobs:
    """Computes the log-likelihoods of a batch's trained tokens. Only the logits that predict them are computed."""
    logits_BKV = network(**batch.inputs, use_cache=False).logits
    rows, columns = batch.rows, batch.columns
    if len(rows) < logits_BKV.shape[:-1].numel():  # padding has logits as well
        logits_BKV = logits_BKV[rows, columns].unsqueeze(0)
        rows, columns = torch.zeros_like(rows), torch.arange(len(rows), device=rows.device)
    logits_BKV = logits_BKV.to(torch.promote_types(logits_BKV.dtype, torch.float32))
    return Logprobs(batch, log_likelihood(logits_BKV, rows, columns, batch.labels))


def log_likelihood(logits_BKV: Tensor, rows_E: Tensor, columns_E: Tensor, labels_E: Tensor) -> Tensor:
    """Returns the log-softmax of some logits at (row, column, label), as (E,), without a copy of the logits."""
    found_E: Tensor = _LogLikelihood.apply(logits_BKV, rows_E, columns_E, labels_E)
    return found_E


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKV: Tensor, rows_E: Tensor, columns_E: Tensor, labels_E: Tensor) -> Tensor:
        logp_BKV = logits_BKV.log_softmax(-1)
        ctx.save_for_backward(logp_BKV, rows_E, columns_E, labels_E)
        return logp_BKV[rows_E, columns_E, labels_E]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (logp_BKV, rows_E, columns_E, labels_E), (gradient_E,) = ctx.saved_tensors, gradients
        weights_BK = gradient_E.new_zeros(logp_BKV.shape[:-1])
        weights_BK.index_put_((rows_E, columns_E), -gradient_E, accumulate=True)
        found_BKV = logp_BKV.exp().mul_(weights_BK.unsqueeze(-1))
        found_BKV.index_put_((rows_E, columns_E, labels_E), gradient_E, accumulate=True)
        return found_BKV, None, None, None
