"""Attention masks of a prefix tree, in the form that a network's attention takes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch

from stasc.prefix_tree import attention
from stasc.prefix_tree.trie import Trie

if TYPE_CHECKING:
    from torch import Tensor

    from stasc.models.model import Network

# bool: True where a token attends; another dtype: added to the scores; blocks: a BlockMask, from which flex attention
# skips empty blocks; rows: the tree is computed row by row, see `attention`.
Mask: TypeAlias = torch.dtype | Literal["blocks", "rows"]


def mask_arguments(trie: Trie, mask: Mask, device: torch.device | str, before: int = 0) -> dict[str, Any]:
    """Returns the attention arguments of a network that computes a tree.

    Args:
        before: number of tokens in the KV cache, all of which the tree attends to.
    """
    if mask == "rows":
        layout, mask_NWS = attention.rows(trie, before)
        return {"attention_mask": mask_NWS.unsqueeze(1), "layout": layout}
    mask_TT = trie.attention_mask()
    mask_1TS = torch.cat([mask_TT.new_ones(len(mask_TT), before), mask_TT], dim=1).to(device).unsqueeze(0)
    if mask == "blocks":
        return {"attention_mask": _block_mask(mask_1TS)}
    if mask == torch.bool:
        return {"attention_mask": mask_1TS.unsqueeze(1)}
    added = torch.zeros(mask_1TS.shape, dtype=mask, device=device)
    return {"attention_mask": added.masked_fill(~mask_1TS, torch.finfo(mask).min).unsqueeze(1)}


def tree_attention(network: Network, mask: Mask | None) -> AbstractContextManager[None]:
    """Makes a network use the attention that takes such masks."""
    return attention.using(network, attention.TREE_ATTENTION) if mask == "rows" else nullcontext()


def _block_mask(mask_1TS: Tensor) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def attends(b: Tensor, h: Tensor, q: Tensor, s: Tensor) -> Tensor:
        return mask_1TS[b, q, s]

    batch, queries, keys = mask_1TS.shape
    return create_block_mask(attends, batch, None, queries, keys, device=mask_1TS.device)
