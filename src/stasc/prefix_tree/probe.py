"""Examples as a tree of tokens: what several have in common from their beginning on is computed once.

The corrections of a question share their prompt, equal ones all of themselves, and all prompts the system's turn. A
token attends to what leads to it from the root, and its position is its depth, so it is computed as it would be in a
row of its own; a trained token counts once for each example that has it.

Shapes: T tokens of the tree, K of them that predict a trained token, E edges that are trained (a token and one that
follows it), V vocabulary; B rows, Q tokens that look at S.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from stasc.machine.oom import ran_out
from stasc.models import precision
from stasc.prefix_tree.batch import Example, collate, tree
from stasc.prefix_tree.likelihood import logprobs
from stasc.prefix_tree.masks import Mask, attending
from stasc.tracking import fallback

if TYPE_CHECKING:
    from stasc.models.model import Network


def mask_dtype(network: Network, dtype: torch.dtype) -> Mask | None:
    """Returns the kind of mask that this network takes for a prefix tree; None if its attention takes none."""
    return probe(network, dtype)[0]


def probe(network: Network, dtype: torch.dtype) -> tuple[Mask | None, str]:
    """What masks of a tree are for this network, as `mask_dtype` has it, and if there is none, why.

    That is seen from short examples: some models attend by other means than masks, or have positions of their own. A
    window of attention is not seen, see `sees_all`, nor what changes with the length of a sequence, see `lengths`.
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
    return None, first or f"attention by {implementation} takes no mask of a tree of tokens"


def _fault(network: Network, mask: Mask) -> str:
    """Returns why packed examples differ from examples in rows of their own; empty if they do not."""
    # Branches so long that what stands between their tokens in the tree, but not in a row, shows in a flat attention.
    completions = [tuple(4 + (at * at + branch * at) % 6 for at in range(12)) for branch in range(3)]
    prompts = ((1, 2, 3), (1, 2, 3), (1, 8, 2))
    examples = [Example("", prompt, ids) for prompt, ids in zip(prompts, completions, strict=True)]
    attempt = Attempt()
    with _evaluated(network), attempt, precision.widened(network), attending(network, mask):
        packed, rows = (
            logprobs(network, batch.to(network.device)).total()
            for batch in (tree(examples, mask, network.device), collate(examples))
        )
        attempt.compare(packed, rows, 1e-5 if precision.is_floating(network) else 0.05)
    return attempt.fault


_pads: WeakKeyDictionary[Network, dict[torch.dtype, bool]] = WeakKeyDictionary()


def pads(network: Network) -> bool:
    """Whether examples may be padded: whether a short one beside a long one is computed as it is alone.

    Eager attention in float64 gives NaN for padding, as its masks overflow in a softmax in float32; some recurrent
    models read padding as tokens. It is looked at once.
    """
    known = _pads.setdefault(network, {})
    if network.dtype not in known:
        short, long = Example("", (1, 2), (3, 4)), Example("", (5, 6, 7, 8, 9), (1, 2))
        attempt = Attempt()
        with _evaluated(network), attempt, precision.widened(network):
            alone, beside = (
                logprobs(network, collate(examples).to(network.device)).tokens()[0]
                for examples in ([short], [short, long])
            )
            attempt.compare(beside, alone, 1e-3 if precision.is_floating(network) else 0.05)
        if attempt.fault:
            fallback.report("no padding, so that only sequences of one length are computed together", attempt.fault)
        known[network.dtype] = not attempt.fault
    return known[network.dtype]


@contextmanager
def _evaluated(network: Network) -> Iterator[None]:
    """Runs a network without dropout and gradients."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def tolerance(network: Network) -> float:
    """How much two ways to compute the same may differ, relatively. Quantised weights round to 16 bits in between."""
    return 1e-3 if precision.is_floating(network) else 0.03


def compared(network: Network, output: Any) -> torch.Tensor:
    """What of an output is compared, by row: logits, but where rounding adds up over layers, what the first gives."""
    found: torch.Tensor = output.logits if precision.is_floating(network) else output.hidden_states[1]
    return found[:, -1].to(torch.promote_types(found.dtype, torch.float32))


class Attempt:
    """Tries whether a network can do something: `fault` is why not, or empty.

    What networks raise that cannot: they refuse an argument or a value, or their shapes do not fit. Anything else, and
    all that a device raises, says nothing of that and is passed on.
    """

    def __init__(self) -> None:
        self.fault = "it was not tried"

    def compare(self, found: torch.Tensor, expected: torch.Tensor, most: float) -> None:
        """Notes how far two ways are apart, relatively, by row where there are several values.

        NaN is too far, but where it is expected the weights are broken, which says nothing of the two ways.
        """
        apart = (found - expected).abs() / expected.abs()
        if expected.dim() > 1:
            apart = (found - expected).norm(dim=1) / expected.norm(dim=1)
        worst = float(apart.max())
        same = worst <= most or not expected.isfinite().all()
        self.fault = "" if same else f"a trial differs by {worst:.2g}, where {most:g} is expected at most"

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, RuntimeError | ValueError | TypeError | AttributeError | LookupError):
            return False
        if ran_out(error) or isinstance(error, torch.AcceleratorError):
            return False
        first, *_ = str(error).splitlines() or [""]
        self.fault = f"{type(error).__name__}: {first[:200]}"
        return True


def sees_all(network: Network, longest: int) -> bool:
    """Whether every layer attends to all tokens of a sequence of `longest`: none has a shorter attention window."""
    if "local" in getattr(network.config.get_text_config(), "attention_layers", ()):  # GPT-Neo's name for a window
        return False
    return all(
        layer.sliding_window >= longest if type(layer) is DynamicSlidingWindowLayer else type(layer) is DynamicLayer
        for layer in DynamicCache(config=network.config).layers
    )
