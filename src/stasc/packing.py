"""Examples as a tree of tokens: what several have in common from their beginning on is computed once.

The corrections of a question share their prompt, equal ones all of themselves, and all prompts the system's turn. A
token attends to what leads to it from the root, and its position is its depth, so it is computed as it would be in a
row of its own; a trained token counts once for each example that has it.

Shapes: T tokens of the tree, K of them that predict a trained token, E edges that are trained (a token and one that
follows it), V vocabulary; B rows, Q tokens that look at S.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from stasc import attention
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
    """What masks of a tree are for this network, which computes in `dtype`; None if its attention takes none.

    That is seen from short examples: some models attend by other means than masks, or have positions of their own. A
    window of attention is lost; see `sees_all`.
    """
    implementation = getattr(network.config.get_text_config(), "_attn_implementation", None)
    masks: dict[str | None, list[Mask]] = {
        "sdpa": ["rows", torch.bool],
        "eager": [dtype],
        "flex_attention": ["blocks"],
    }
    return next((mask for mask in masks.get(implementation, []) if _works(network, dtype, mask)), None)


def _works(network: Network, dtype: torch.dtype, mask: Mask) -> bool:
    """Whether a tree is what a row for each example is."""
    examples = [Example("", (1, 2, 3), (4, 5, 6)), Example("", (1, 2, 3), (4, 6, 7)), Example("", (1, 8, 2), (9, 3, 5))]
    weights = [1.0] * len(examples)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), Unable(), attending(network, mask):
            packed, rows = (
                (batch.weights * token_losses(network, batch)).sum()
                for batch in (
                    batch.to(network.device)
                    for batch in (tree(examples, weights, mask, network.device), collate(examples, weights))
                )
            )
            return torch.allclose(packed, rows, rtol=1e-4 if dtype.itemsize > 2 else 0.05)
    finally:
        network.train(was_training)
    return False


def attending(network: Network, mask: Mask | None) -> AbstractContextManager[None]:
    """Has a network attend by what takes such masks."""
    return attention.using(network, attention.IN_ROWS) if mask == "rows" else nullcontext()


class Unable(suppress):
    """Passes over what a network raises that cannot do what is tried; that memory ran out says nothing of that."""

    def __init__(self) -> None:
        super().__init__(RuntimeError, ValueError, TypeError, AttributeError, LookupError)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return not ran_out(error) and super().__exit__(kind, error, trace)


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
