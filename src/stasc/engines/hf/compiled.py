"""Parts of layers compiled by torch while answers are sampled, for GPUs, where many small operations take time.

These are what has no cache, such as norms and MLPs: they are the same code in each layer, and are compiled once for
all numbers of rows above one. Attention, of which the shape is another one at each step, is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from transformers.modeling_layers import GradientCheckpointingLayer

from stasc.engines.hf import prefill

if TYPE_CHECKING:
    from torch import nn

    from stasc.models.model import Network


_FORMS = 64  # of one code: for one row and for several, with and without adapters, trained or not


@contextmanager
def layers(network: Network) -> Iterator[None]:
    """Has a network compute by compiled parts of its layers.

    Raises: ValueError if torch cannot compile them.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    prefill.shares(network)  # is found out without them, as one that cannot be compiled may share all the same
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
            part._compiled_call_impl = None  # torch has no name for it; fine-tuning computes as it always does


def parts(network: Network) -> list[nn.Module]:
    """Those of a network's layers that are compiled."""
    every = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    return [part for layer in every for part in layer.children() if not _attends(part)]


def _attends(part: nn.Module) -> bool:
    return hasattr(part, "layer_idx") or "attention" in type(part).__name__.lower()
