"""Accumulates the gradients of matrices in place, in memory that is reused from step to step.

On a CPU, allocating a gradient may take longer than computing it. torch allocates one for the embedding (zero but for a
few rows), one for the output matrix and one for their sum in each backward pass.

Shapes: I and O values into and out of a matrix, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

Kept = dict[nn.Parameter, Tensor]  # the memory of each gradient


@contextmanager
def kept(network: nn.Module, memory: Kept) -> Iterator[None]:
    """Accumulates the gradients of embeddings and of linear layers without bias in `memory`."""
    replaced = [module for module in network.modules() if _is_plain(module)]
    for module in replaced:
        product = _Linear if isinstance(module, nn.Linear) else _Embedding
        module.forward = _forward(module, product, memory)
    try:
        yield
    finally:
        for module in replaced:
            del module.forward


def _is_plain(module: nn.Module) -> bool:
    """Checks that a module is torch's own, without options, and that nothing hooks into its trained weight."""
    weight = getattr(module, "weight", None)
    if "forward" in vars(module) or not isinstance(weight, nn.Parameter) or not weight.requires_grad:
        return False
    if weight._backward_hooks or weight._post_accumulate_grad_hooks:
        return False
    if type(module) is nn.Linear:
        return module.bias is None
    return type(module) is nn.Embedding and not (module.sparse or module.scale_grad_by_freq or module.max_norm)


def _forward(module: nn.Module, product: type[torch.autograd.Function], memory: Kept) -> Callable[[Tensor], Tensor]:
    plain: Callable[[Tensor], Tensor] = module.forward

    def forward(input: Tensor) -> Tensor:
        trained = torch.is_grad_enabled() and module.weight.requires_grad
        if not trained or torch.is_autocast_enabled(input.device.type):
            return plain(input)
        found: Tensor = product.apply(input, module.weight, module, memory)
        return found

    return forward


def _gradient(weight: nn.Parameter, memory: Kept) -> tuple[Tensor, bool]:
    """Returns the memory of a weight's gradient, and whether this step has written to it already."""
    if weight.grad is not None:
        return weight.grad, True
    if weight not in memory:
        memory[weight] = torch.empty_like(weight)
    weight.grad = memory[weight]
    return weight.grad, False


class _Linear(torch.autograd.Function):
    """Multiplies x (..., I) by the transpose of weight (O, I)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, module: nn.Linear, memory: Kept) -> Tensor:
        ctx.save_for_backward(x)
        ctx.module, ctx.memory = module, memory
        return functional.linear(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None]:
        (x,), weight, (gradient,) = ctx.saved_tensors, ctx.module.weight, gradients
        outer, inner = gradient.reshape(-1, gradient.shape[-1]).T, x.reshape(-1, x.shape[-1])
        found, more = _gradient(weight, ctx.memory)
        if more:
            found.addmm_(outer, inner)
        else:
            torch.mm(outer, inner, out=found)
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Embedding(torch.autograd.Function):
    """Looks up the rows of weight (V, O) for ids (...)."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, module: nn.Embedding, memory: Kept) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.module, ctx.memory = module, memory
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        (ids,), module, (gradient,) = ctx.saved_tensors, ctx.module, gradients
        found, more = _gradient(module.weight, ctx.memory)
        if not more:
            found.zero_()
        if module.padding_idx is not None:
            gradient = gradient.masked_fill((ids == module.padding_idx).unsqueeze(-1), 0)
        found.index_add_(0, ids.flatten(), gradient.reshape(-1, gradient.shape[-1]))
        return None, None, None, None
