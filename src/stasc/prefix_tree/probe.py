"""Finds out by trial whether a network can compute prefix trees, and whether its sequences can be padded.

Models differ in attention, positions and padding in ways that no setting of theirs states. Each trial compares short
sequences with the same sequences computed one per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from stasc.machine.memory import ran_out
from stasc.models import precision
from stasc.prefix_tree.batch import Example, collate, tree
from stasc.prefix_tree.likelihood import logprobs
from stasc.prefix_tree.masks import Mask, tree_attention
from stasc.tracking import fallback

if TYPE_CHECKING:
    from stasc.models.model import Network

# Errors of a network that cannot do something: it refuses an argument or a value, or shapes do not fit.
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)


def probe(network: Network, dtype: torch.dtype) -> tuple[Mask | None, str]:
    """Returns the kind of mask by which a network computes prefix trees, or None and the reason.

    The trial is too short for attention windows, see `attends_to_all`, and for effects of length, see `lengths`.
    """
    implementation = getattr(network.config.get_text_config(), "_attn_implementation", None)
    masks: dict[str | None, list[Mask]] = {
        "sdpa": ["rows", torch.bool],
        "eager": [dtype],
        "flex_attention": ["blocks"],
    }
    first = ""
    for mask in masks.get(implementation, []):
        if not (fault := _fault(network, mask)):
            if first:
                fallback.report("attention by a mask of the whole tree, which takes more time and memory", first)
            return mask, ""
        first = first or fault
    return None, first or f"attention by {implementation} takes no mask of a prefix tree"


def _fault(network: Network, mask: Mask) -> str:
    """Returns why a prefix tree of examples differs from the same examples in rows; empty if it does not."""
    # The branches are long, so that even flat attention shows the tokens that stand between them in the tree.
    completions = [tuple(4 + (at * at + branch * at) % 6 for at in range(12)) for branch in range(3)]
    prompts = ((1, 2, 3), (1, 2, 3), (1, 8, 2))
    examples = [Example("", prompt, ids) for prompt, ids in zip(prompts, completions, strict=True)]
    trial = Trial()
    with _evaluating(network), trial, precision.widened(network), tree_attention(network, mask):
        batches = (tree(examples, mask, network.device), collate(examples))
        packed, rows = (logprobs(network, batch.to(network.device)).total() for batch in batches)
        trial.compare(packed, rows, 1e-5 if precision.is_floating(network) else 0.05)
    return trial.reason


_pads: WeakKeyDictionary[Network, dict[torch.dtype, bool]] = WeakKeyDictionary()


def pads(network: Network) -> bool:
    """Whether padding leaves a network's results unchanged; tried once.

    Eager attention in float64 gives NaN, as its masks overflow in a float32 softmax. Some recurrent models read padding
    as tokens.
    """
    known = _pads.setdefault(network, {})
    if network.dtype not in known:
        short, long = Example("", (1, 2), (3, 4)), Example("", (5, 6, 7, 8, 9), (1, 2))
        trial = Trial()
        with _evaluating(network), trial, precision.widened(network):
            alone, padded = (
                logprobs(network, collate(examples).to(network.device)).tokens()[0]
                for examples in ([short], [short, long])
            )
            trial.compare(padded, alone, 1e-3 if precision.is_floating(network) else 0.05)
        if trial.reason:
            fallback.report("no padding, so that only sequences of one length are computed together", trial.reason)
        known[network.dtype] = not trial.reason
    return known[network.dtype]


def attends_to_all(network: Network, longest: int) -> bool:
    """Whether every layer attends to all of a sequence of `longest` tokens: no attention window is shorter."""
    if "local" in getattr(network.config.get_text_config(), "attention_layers", ()):  # GPT-Neo's name for a window
        return False
    return all(
        layer.sliding_window >= longest if type(layer) is DynamicSlidingWindowLayer else type(layer) is DynamicLayer
        for layer in DynamicCache(config=network.config).layers
    )


def tolerance(network: Network) -> float:
    """Returns the relative difference that rounding explains. Quantised weights round to 16 bits in between."""
    return 1e-3 if precision.is_floating(network) else 0.03


def compared(network: Network, output: Any) -> Tensor:
    """Returns the part of an output that a trial compares: logits, or the first layer's output if rounding adds up."""
    found: Tensor = output.logits if precision.is_floating(network) else output.hidden_states[1]
    return found[:, -1].to(torch.promote_types(found.dtype, torch.float32))


class Trial:
    """A context manager for a trial: `reason` says why a network failed it, and is empty if it did not.

    It catches what networks raise that cannot do something. Other errors, and those of a device, are passed on.
    """

    def __init__(self) -> None:
        self.reason = "it was not tried"

    def compare(self, found: Tensor, expected: Tensor, most: float) -> None:
        """Fails the trial if a value, or the norm of a row of values, differs by more than `most`, relatively.

        NaN differs too, unless it is expected: then the weights are broken, which decides nothing.
        """
        apart, size = (x.abs() if x.dim() < 2 else x.norm(dim=1) for x in (found - expected, expected))
        worst = float((apart / size).max())
        same = worst <= most or not expected.isfinite().all()
        self.reason = "" if same else f"a trial differs by {worst:.2g}, where {most:g} is expected at most"

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, _REFUSALS) or ran_out(error) or isinstance(error, torch.AcceleratorError):
            return False
        first, *_ = str(error).splitlines() or [""]
        self.reason = f"{type(error).__name__}: {first[:200]}"
        return True


@contextmanager
def _evaluating(network: Network) -> Iterator[None]:
    """Runs a network without dropout and gradients."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)
