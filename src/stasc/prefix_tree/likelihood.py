"""Log-likelihoods of given tokens under a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stasc.prefix_tree.batch import Batch


def token_losses(network: nn.Module, batch: Batch) -> Tensor:
    """Negative log-likelihood of each trained token (E,), float32 or wider; logits are computed only for them."""
    logits_BKV = network(**batch.inputs, use_cache=False).logits
    rows, columns = batch.rows, batch.columns
    if len(rows) < logits_BKV.shape[:-1].numel():  # padding has logits as well
        logits_BKV = logits_BKV[rows, columns].unsqueeze(0)
        rows, columns = torch.zeros_like(rows), torch.arange(len(rows), device=rows.device)
    logits_BKV = logits_BKV.to(torch.promote_types(logits_BKV.dtype, torch.float32))
    return negative_log_likelihood(logits_BKV, rows, columns, batch.labels)


def negative_log_likelihood(logits_BKV: Tensor, rows_E: Tensor, columns_E: Tensor, labels_E: Tensor) -> Tensor:
    """What `cross_entropy` of the logits at these rows and columns is, (E,), without a copy of these logits."""
    losses_E: Tensor = _NegativeLogLikelihood.apply(logits_BKV, rows_E, columns_E, labels_E)
    return losses_E


class _NegativeLogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKV: Tensor, rows_E: Tensor, columns_E: Tensor, labels_E: Tensor) -> Tensor:
        logp_BKV = logits_BKV.log_softmax(-1)
        ctx.save_for_backward(logp_BKV, rows_E, columns_E, labels_E)
        return -logp_BKV[rows_E, columns_E, labels_E]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (logp_BKV, rows_E, columns_E, labels_E), (gradient_E,) = ctx.saved_tensors, gradients
        weights_BK = gradient_E.new_zeros(logp_BKV.shape[:-1])
        weights_BK.index_put_((rows_E, columns_E), gradient_E, accumulate=True)
        found_BKV = logp_BKV.exp().mul_(weights_BK.unsqueeze(-1))
        found_BKV.index_put_((rows_E, columns_E, labels_E), -gradient_E, accumulate=True)
        return found_BKV, None, None, None
