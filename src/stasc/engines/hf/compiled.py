"""Compiles norms and MLPs while sampling, for GPUs, where many small operations take time.

They have the same code in each layer and are compiled once for all numbers of rows above one. Attention is not
compiled, as its shapes change at every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from stasc.engines.hf import prefill
from stasc.models.model import Network

_FORMS = 64  # compilations of one function: one row or several, with or without adapters, trained or not


@contextmanager
def layers(network: Network) -> Iterator[None]:
    """Compiles parts of a network's layers within the `with` block. Raises: ValueError if torch cannot compile them."""
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    prefill.shares(network)  # probed before: a network that cannot be compiled may still share prefixes
    compiled = parts(network)
    for part in compiled:
        part.compile(dynamic=True)
    try:
        with config.patch(recompile_limit=_FORMS):
            yield
    except TorchDynamoException as error:
        reason = " ".join(str(error).strip().splitlines()[:2])
        raise ValueError(f"engine.compiled=true: {reason}; set engine.compiled=false") from error
    finally:
        for part in compiled:
            part._compiled_call_impl = None  # torch has no public way to undo it; fine-tuning is not compiled


def parts(network: Network) -> list[nn.Module]:
    """Returns the modules of a network's layers that are compiled."""
    found = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [part for layer in found for part in layer.children() if not _attends(part)]


def _attends(part: nn.Module) -> bool:
    return hasattr(part, "layer_idx") or "attention" in type(part).__name__.lower()
