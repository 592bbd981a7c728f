"""Attention masks of a prefix tree, in the form that a network's attention takes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from stasc.prefix_tree import attention
from stasc.prefix_tree.trie import Trie

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from stasc.models.model import Network


Mask: TypeAlias = torch.dtype | Literal["blocks", "rows"]  # what attention takes: see `as_mask` and `tree`


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


def attending(network: Network, mask: Mask | None) -> AbstractContextManager[None]:
    """Has a network attend by what takes such masks."""
    return attention.using(network, attention.IN_ROWS) if mask == "rows" else nullcontext()


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
