"""Examples as a tree of tokens: what several have in common from their beginning on is computed once.

The corrections of a question share their prompt, equal ones all of themselves, and all prompts the system's turn. A
token attends to what leads to it from the root, and its position is its depth, so it is computed as it would be in a
row of its own; a trained token counts once for each example that has it.

Shapes: T tokens of the tree, K of them that predict a trained token, E edges that are trained (a token and one that
follows it), V vocabulary; B rows, Q tokens that look at S.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from weakref import WeakKeyDictionary

import torch

from stasc import attention, fallback, precision
from stasc.finetune import Batch, Example, collate, token_losses
from stasc.oom import ran_out
from stasc.trie import Trie, costs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from stasc.model import Network

Mask: TypeAlias = torch.dtype | Literal["blocks", "rows"]  # what attention takes: see `as_mask` and `tree`


def tree(
    examples: Sequence[Example], weights: Sequence[float], mask: Mask, device: torch.device | str = "cpu"
) -> Batch:
    """The tree of some examples.

    Args:
        weights: of each trained token of an example; one that several examples have gets the sum.
        mask: as `as_mask` takes it, or rows for `attention.IN_ROWS`.
        device: of the mask, which may not move. The rest is on the CPU.
    """
    trie = Trie()
    edges: dict[tuple[int, int], list[float]] = {}  # by token and next id: weight and count
    for example, weight in zip(examples, weights, strict=True):
        path = trie.add(example.prompt + example.completion[:-1])  # the last token is predicted, and predicts nothing
        for at, id_ in zip(path[len(example.prompt) - 1 :], example.completion, strict=True):
            edge = edges.setdefault((at, id_), [0.0, 0.0])
            edge[0] += weight
            edge[1] += 1

    kept = list(dict.fromkeys(at for at, _ in edges))
    place = {at: k for k, at in enumerate(kept)}
    return Batch(
        inputs={
            "input_ids": torch.tensor([trie.ids]),
            "position_ids": torch.tensor([trie.depths()]),
            **attended(trie, mask, device),
            "logits_to_keep": torch.tensor(kept),
        },
        rows=torch.zeros(len(edges), dtype=torch.int64),
        columns=torch.tensor([place[at] for at, _ in edges]),
        labels=torch.tensor([id_ for _, id_ in edges]),
        weights=torch.tensor([weight for weight, _ in edges.values()], dtype=torch.float64),
        counts=torch.tensor([count for _, count in edges.values()], dtype=torch.float64),
        examples=list(examples),
    )


def attended(trie: Trie, mask: Mask, device: torch.device | str, before: int = 0) -> dict[str, Any]:
    """What the tokens of a tree look at, as arguments of a network.

    Args:
        before: how many tokens all of them look at that are in the cache already.
    """
    if mask != "rows":
        seen_TT = trie.seen()
        seen_TS = torch.cat([seen_TT.new_ones(len(seen_TT), before), seen_TT], dim=1)
        return {"attention_mask": as_mask(seen_TS.to(device).unsqueeze(0), mask)}
    rows, mask_NWS = attention.rows(trie, before)
    return {"attention_mask": as_mask(mask_NWS, torch.bool), "rows": rows}


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
    weights = [1.0] * len(examples)
    attempt = Attempt()
    with _evaluated(network), attempt, precision.widened(network), attending(network, mask):
        packed, rows = (
            (batch.weights * token_losses(network, batch)).sum()
            for batch in (
                batch.to(network.device)
                for batch in (tree(examples, weights, mask, network.device), collate(examples, weights))
            )
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
                token_losses(network, collate(examples, [1.0] * len(examples)).to(network.device))[:2]
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


def attending(network: Network, mask: Mask | None) -> AbstractContextManager[None]:
    """Has a network attend by what takes such masks."""
    return attention.using(network, attention.IN_ROWS) if mask == "rows" else nullcontext()


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
    """Whether no window of attention is shorter than so many tokens."""
    from stasc.engine import cache

    local = "local" in getattr(network.config.get_text_config(), "attention_layers", ())  # GPT-Neo's name for one
    return not local and cache.sees_all(network.config, longest)


def worthwhile(network: Network) -> int:
    """How many tokens to compute at once, so that scores between all of them were less than a quarter of the work.

    They may be that much because every further part costs a pass over all weights and their gradients. In rows they are
    fewer, or as many; what is computed at once takes memory all the same.
    """
    cost = costs(network)
    return max(64, cost.token // (4 * cost.pair))


def as_mask(seen_BQS: Tensor, mask: Mask) -> Any:
    """A mask (B, 1, Q, S) of what each token sees, on the same device.

    Args:
        mask: bool for what is seen itself, another dtype for what is added to scores, or blocks for flex attention,
            which computes only those in which something is seen.
    """
    if mask == "blocks":
        return _blocks(seen_BQS)
    if mask == torch.bool:
        return seen_BQS.unsqueeze(1)
    assert mask != "rows", "those are of `attention.rows`"
    added = torch.zeros(seen_BQS.shape, dtype=mask, device=seen_BQS.device)
    return added.masked_fill(~seen_BQS, torch.finfo(mask).min).unsqueeze(1)


def _blocks(seen_BQS: Tensor) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, q: Tensor, s: Tensor) -> Tensor:
        return seen_BQS[b, q, s]

    rows, queries, keys = seen_BQS.shape
    return create_block_mask(sees, rows, None, queries, keys, device=seen_BQS.device)
