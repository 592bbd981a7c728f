"""Attention of a prefix tree in rows, which computes fewer scores than a mask of the whole tree.

Most pairs of tokens in a tree do not attend to each other. Its segments are therefore packed into the rows of a batch,
and the keys of a row are its own tokens and their ancestors.

Shapes: T tokens of the tree, N rows of W queries and S keys, H heads of keys, R heads of queries per head of keys, D
size of a head, X all heads.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import dropout as drop_out
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from stasc.models.model import Network
    from stasc.prefix_tree.trie import Trie

TREE_ATTENTION = "stasc_rows"  # name in transformers' registry: SDPA, except for calls that give a `layout`
_SHORT = 256  # keys up to which plain matrix products take a quarter of SDPA's time on a CPU
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias", "head_mask", "block_indices")  # arguments of some models


@contextmanager
def using(network: Network, name: str) -> Iterator[None]:
    """Makes a network use the attention that is registered under a name."""
    config: Any = network.config.get_text_config()
    was, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = was


def expect_plain(arguments: dict[str, Any]) -> None:
    """Raises: ValueError if a model's attention is more than a softmax of scores."""
    if any(arguments.get(name) is not None for name in _UNSUPPORTED):
        raise ValueError("this attention is more than a softmax of scores")


def product(wide: Tensor, narrow: Tensor) -> Tensor:
    """Returns a matrix product in the dtype of `wide`, float32 or wider, not in that of the model."""
    return wide @ narrow.to(wide.dtype)


@dataclass(frozen=True)
class Layout:
    """The assignment of a prefix tree's tokens to the rows of a batch.

    Args:
        queries_NW: tokens of each row, padded with any token.
        keys_NS: positions of each row's keys in the KV cache, padded with any position.
        slots_T: index of each token in the flattened queries_NW.
    """

    queries_NW: Tensor
    keys_NS: Tensor
    slots_T: Tensor

    def to(self, device: torch.device) -> Layout:
        """Returns the layout on a device."""
        return Layout(self.queries_NW.to(device), self.keys_NS.to(device), self.slots_T.to(device))


def rows(trie: Trie, before: int = 0) -> tuple[Layout, Tensor]:
    """Returns the layout of a tree in rows, and their attention mask, bool (N, W, S).

    Args:
        before: number of tokens in the KV cache, all of which the tree attends to.
    """
    segments = [(segment, trie.path(segment[0])[:-1]) for segment in trie.segments()]
    capacities = [max(trie.depths()) + 1]
    while capacities[-1] < 2 * len(trie):  # the last one holds the whole tree
        capacities.append(2 * capacities[-1])
    packed = min((_pack(segments, capacity) for capacity in capacities), key=lambda packed: _scores(packed, before))
    width, length = _sizes(packed)
    slots_T = torch.empty(len(trie), dtype=torch.int64)
    for n, (queries, _) in enumerate(packed):
        slots_T[queries] = n * width + torch.arange(len(queries))
    queries_NW, keys_NS = (
        torch.tensor([row[i] + row[i][:1] * (most - len(row[i])) for row in packed])
        for i, most in ((0, width), (1, length))
    )
    begins_T, ends_T = trie.spans()
    begins_NW1 = begins_T[queries_NW].unsqueeze(2)
    mask_NWS = (begins_T[keys_NS].unsqueeze(1) <= begins_NW1) & (begins_NW1 < ends_T[keys_NS].unsqueeze(1))
    mask_NWS &= torch.arange(length) < torch.tensor([len(keys) for _, keys in packed])[:, None, None]
    mask_NWS = torch.cat([mask_NWS.new_ones(len(packed), width, before), mask_NWS], dim=2)
    keys_NS = torch.cat([torch.arange(before).expand(len(packed), -1), before + keys_NS], dim=1)
    return Layout(queries_NW, keys_NS, slots_T), mask_NWS


Packed = list[tuple[list[int], list[int]]]  # queries and keys of each row


def _pack(segments: Sequence[tuple[list[int], list[int]]], capacity: int) -> Packed:
    """Packs segments, each with its ancestors, into rows of at most `capacity` keys."""
    rows: list[tuple[list[int], set[int]]] = []
    for segment, ancestors in sorted(segments, key=lambda pair: len(pair[0]), reverse=True):
        best = None
        for queries, keys in rows:
            if len(keys) + len(segment) <= capacity and (best is None or len(queries) < len(best[0])):
                missing = len(ancestors) - bisect_left(ancestors, True, key=lambda token: token not in keys)
                if len(keys) + len(segment) + missing <= capacity:
                    best = (queries, keys)
        if best is None:
            rows.append(best := ([], set()))
        best[0].extend(segment)
        best[1].update(segment, ancestors)
    return [(queries, sorted(keys)) for queries, keys in rows]


def _sizes(packed: Packed) -> tuple[int, int]:
    """Returns the most queries and the most keys of a row."""
    return max(len(queries) for queries, _ in packed), max(len(keys) for _, keys in packed)


def _scores(packed: Packed, before: int) -> int:
    """Returns how many scores are computed, padding and the tokens in the cache included."""
    width, length = _sizes(packed)
    return len(packed) * width * (before + length)


class _ToRows(torch.autograd.Function):
    """Copies tokens (T, X) into rows (N W, X); padding is unused, so no gradient comes back from it."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, index: Tensor, slots_T: Tensor) -> Tensor:
        ctx.save_for_backward(slots_T)
        return x_TX.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (slots_T,) = ctx.saved_tensors
        return gradients[0].index_select(0, slots_T), None, None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes the attention of a prefix tree in rows, or plain SDPA without a layout; transformers calls it.

    Args:
        query: (1, H R, T, D).
        key, value: (1, H, T, D), preceded by those of tokens in the KV cache.
        attention_mask: bool (N, 1, W, S).
    Returns: (1, T, H R, D), and no weights.
    """
    heads, repeats = key.shape[1], query.shape[1] // key.shape[1]
    if layout is None:
        more: Any = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    expect_plain(kwargs)
    assert attention_mask is not None
    q_TX, k_TX, v_TX = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))
    q_NWX = _ToRows.apply(q_TX, layout.queries_NW.flatten(), layout.slots_T).view(*layout.queries_NW.shape, -1)
    q_NHRWD = q_NWX.unflatten(2, (heads, repeats, -1)).permute(0, 2, 3, 1, 4)
    k_NHSD, v_NHSD = (
        x.index_select(0, layout.keys_NS.flatten()).view(*layout.keys_NS.shape, heads, -1).transpose(1, 2)
        for x in (k_TX, v_TX)
    )
    found_NHRWD = _attend(q_NHRWD, k_NHSD, v_NHSD, attention_mask.unsqueeze(2), scaling, dropout)
    found_NWX = found_NHRWD.permute(0, 3, 1, 2, 4).flatten(2)
    return found_NWX.flatten(0, 1).index_select(0, layout.slots_T).view(1, len(q_TX), heads * repeats, -1), None


def _attend(
    q_NHRWD: Tensor, k_NHSD: Tensor, v_NHSD: Tensor, mask_N11WS: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """Returns the attention outputs (N, H, R, W, D)."""
    repeats = q_NHRWD.shape[2]
    if k_NHSD.shape[2] > _SHORT or k_NHSD.device.type != "cpu":  # products were not timed on CUDA
        keys, values = (x.repeat_interleave(repeats, dim=1) for x in (k_NHSD, v_NHSD))
        more: Any = {"scale": scaling, "dropout_p": dropout}
        mixed = scaled_dot_product_attention(q_NHRWD.flatten(1, 2), keys, values, mask_N11WS.squeeze(1), **more)
        found: Tensor = mixed.unflatten(1, (-1, repeats))
        return found
    wide = torch.promote_types(q_NHRWD.dtype, torch.float32)
    q_NHQD = q_NHRWD.flatten(2, 3).to(wide)  # stacks the heads of queries, so that keys need no copies
    scale = q_NHQD.shape[-1] ** -0.5 if scaling is None else scaling
    masked_N11WS = torch.zeros_like(mask_N11WS, dtype=wide).masked_fill_(~mask_N11WS, float("-inf"))
    with torch.autocast(q_NHQD.device.type, enabled=False):  # autocast would round the scores
        scores_NHRWS = product(q_NHQD * scale, k_NHSD.mT).unflatten(2, q_NHRWD.shape[2:4]).add_(masked_N11WS)
        weights_NHRWS = drop_out(scores_NHRWS.softmax(-1), dropout)
        found = product(weights_NHRWS.flatten(2, 3), v_NHSD).unflatten(2, q_NHRWD.shape[2:4])
    return found.to(q_NHRWD.dtype)


AttentionInterface.register(TREE_ATTENTION, _attention)
AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
