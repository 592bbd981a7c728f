"""Runs 16-bit networks in float32, so that rounding does not hide whether two computations agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_NARROW = (torch.bfloat16, torch.float16)


def is_floating(network: nn.Module) -> bool:
    """Whether no weight is quantised."""
    return all(weight.is_floating_point() and weight.dtype.itemsize > 1 for weight in network.parameters())


@contextmanager
def widened(network: nn.Module) -> Iterator[None]:
    """Runs a network in float32 by converting the weights of each module while it computes."""
    had: dict[nn.Parameter, Tensor] = {}

    def widen(module: nn.Module, *_: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for weight in module.parameters(recurse=False):
                if weight.dtype in _NARROW:
                    had[weight] = weight.data
                    weight.data = weight.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            if weight in had:
                weight.data = had.pop(weight)

    with ExitStack() as hooks:
        for module in network.modules():
            if any(weight.dtype in _NARROW for weight in module.parameters(recurse=False)):
                hooks.enter_context(module.register_forward_pre_hook(widen))
                hooks.enter_context(module.register_forward_hook(restore, always_call=True))
        try:
            yield
        finally:
            for weight, data in had.items():
                weight.data = data
