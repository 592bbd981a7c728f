"""Attention within a tree of tokens, piece by piece, as most of a tree is not seen by a token.

A mask of the whole tree would have scores computed between all of its tokens. So they stand in rows, each of which
looks at itself and at what leads to it.

Shapes: T tokens of the tree, N rows of W tokens that look at S, H heads of keys, R heads of queries for each of these,
D size of a head.
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
from torch.nn.functional import dropout as dropped
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from stasc.models.model import Network
    from stasc.prefix_tree.trie import Trie

IN_ROWS = "stasc_rows"  # in transformers' register: SDPA, but for a tree that is given with its `rows`
_SHORT = 256  # tokens: to hold scores of so many is cheap, and products take a quarter of the time of SDPA on a CPU
_MORE = ("softcap", "s_aux", "sinks", "position_bias", "head_mask", "block_indices")  # models' names for it


@contextmanager
def using(network: Network, name: str) -> Iterator[None]:
    """Has a network attend by what is registered under a name."""
    config: Any = network.config.get_text_config()
    was, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = was


def expect_plain(more: dict[str, Any]) -> None:
    """Raises: ValueError if a model asks attention for more than a softmax of scores."""
    if any(more.get(name) is not None for name in _MORE):
        raise ValueError("this attention is more than a softmax of scores")


def product(wide: Tensor, narrow: Tensor) -> Tensor:
    """The matrix product of numbers in float32 or wider with numbers of a model, not rounded to the model's dtype."""
    return wide @ narrow.to(wide.dtype)


@dataclass(frozen=True)
class Rows:
    """Where the tokens of a tree are computed.

    Args:
        tokens_NW: of each row, padded with any.
        seen_NS: those that they look at, as they stand among all keys, padded with any.
        places_T: where each token stands among the N W of the rows.
    """

    tokens_NW: Tensor
    seen_NS: Tensor
    places_T: Tensor

    def to(self, device: torch.device) -> Rows:
        return Rows(self.tokens_NW.to(device), self.seen_NS.to(device), self.places_T.to(device))


def rows(trie: Trie, before: int = 0) -> tuple[Rows, Tensor]:
    """The rows of a tree, and which of the S tokens each of its tokens sees, bool (N, W, S).

    Args:
        before: how many tokens stand before the tree, which all of it sees.
    """
    pieces = [(piece, trie.path(piece[0])[:-1]) for piece in trie.pieces()]
    mosts = [max(trie.depths()) + 1]
    while mosts[-1] < 2 * len(trie):  # with so much room, all stand in one row
        mosts.append(2 * mosts[-1])
    filled = min((_filled(pieces, most) for most in mosts), key=lambda filled: _scores(filled, before))
    width, length = _sizes(filled)
    places_T = torch.empty(len(trie), dtype=torch.int64)
    for n, (tokens, _) in enumerate(filled):
        places_T[tokens] = n * width + torch.arange(len(tokens))
    tokens_NW, seen_NS = (
        torch.tensor([row[i] + row[i][:1] * (most - len(row[i])) for row in filled])
        for i, most in ((0, width), (1, length))
    )
    begins_T, ends_T = trie.spans()
    begins_NW1 = begins_T[tokens_NW].unsqueeze(2)
    mask_NWS = (begins_T[seen_NS].unsqueeze(1) <= begins_NW1) & (begins_NW1 < ends_T[seen_NS].unsqueeze(1))
    mask_NWS &= torch.arange(length) < torch.tensor([len(seen) for _, seen in filled])[:, None, None]
    mask_NWS = torch.cat([mask_NWS.new_ones(len(filled), width, before), mask_NWS], dim=2)
    seen_NS = torch.cat([torch.arange(before).expand(len(filled), -1), before + seen_NS], dim=1)
    return Rows(tokens_NW, seen_NS, places_T), mask_NWS


Filled = list[tuple[list[int], list[int]]]  # tokens of each row, and those that they look at


def _filled(pieces: Sequence[tuple[list[int], list[int]]], most: int) -> Filled:
    """Pieces, each with what leads to it, in rows that look at no more tokens than that."""
    rows: list[tuple[list[int], set[int]]] = []
    for piece, path in sorted(pieces, key=lambda pair: len(pair[0]), reverse=True):
        fits = None
        for tokens, seen in rows:
            if len(seen) + len(piece) <= most and (fits is None or len(tokens) < len(fits[0])):
                missing = len(path) - bisect_left(path, True, key=lambda token: token not in seen)
                if len(seen) + len(piece) + missing <= most:
                    fits = (tokens, seen)
        if fits is None:
            rows.append(fits := ([], set()))
        fits[0].extend(piece)
        fits[1].update(piece, path)
    return [(tokens, sorted(seen)) for tokens, seen in rows]


def _sizes(filled: Filled) -> tuple[int, int]:
    """Tokens of a row, and those that it looks at, at most."""
    return max(len(tokens) for tokens, _ in filled), max(len(seen) for _, seen in filled)


def _scores(filled: Filled, before: int) -> int:
    """How many are computed, padding and the tokens before the tree included."""
    width, length = _sizes(filled)
    return len(filled) * width * (before + length)


class _Spread(torch.autograd.Function):
    """Tokens (T, X) in rows (N W, X). No gradient comes back from padding, as nothing is made of it."""

    @staticmethod
    def forward(ctx: Any, x_TX: Tensor, index: Tensor, places_T: Tensor) -> Tensor:
        ctx.save_for_backward(places_T)
        return x_TX.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places_T,) = ctx.saved_tensors
        return gradients[0].index_select(0, places_T), None, None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers asks for it: queries (1, H R, T, D), keys and values (1, H, T, D), or more of them than queries
    where there are tokens before the tree; gives (1, T, H R, D).

    Args:
        attention_mask: of the rows of a tree, bool (N, 1, W, S).
        rows: of a tree; without them it is SDPA, of any batch and mask.
    """
    heads, repeats = key.shape[1], query.shape[1] // key.shape[1]
    if rows is None:
        more: Any = {"dropout": dropout, "scaling": scaling, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    expect_plain(kwargs)
    assert attention_mask is not None
    q_TX, k_TX, v_TX = (x[0].transpose(0, 1).flatten(1) for x in (query, key, value))
    q_NWX = _Spread.apply(q_TX, rows.tokens_NW.flatten(), rows.places_T).view(*rows.tokens_NW.shape, -1)
    q_NHRWD = q_NWX.unflatten(2, (heads, repeats, -1)).permute(0, 2, 3, 1, 4)
    k_NHSD, v_NHSD = (
        x.index_select(0, rows.seen_NS.flatten()).view(*rows.seen_NS.shape, heads, -1).transpose(1, 2)
        for x in (k_TX, v_TX)
    )
    found_NHRWD = _attend(q_NHRWD, k_NHSD, v_NHSD, attention_mask.unsqueeze(2), scaling, dropout)
    found_NWX = found_NHRWD.permute(0, 3, 1, 2, 4).flatten(2)
    return found_NWX.flatten(0, 1).index_select(0, rows.places_T).view(1, len(q_TX), heads * repeats, -1), None


def _is_short(k_NHSD: Tensor) -> bool:
    """Whether products are to be preferred to SDPA, which on CUDA nobody has compared."""
    return k_NHSD.shape[2] <= _SHORT and k_NHSD.device.type == "cpu"


def _attend(
    q_NHRWD: Tensor, k_NHSD: Tensor, v_NHSD: Tensor, mask_N11WS: Tensor, scaling: float | None, dropout: float
) -> Tensor:
    """What queries gather (N, H, R, W, D)."""
    repeats = q_NHRWD.shape[2]
    if not _is_short(k_NHSD):
        keys, values = (x.repeat_interleave(repeats, dim=1) for x in (k_NHSD, v_NHSD))
        more: Any = {"scale": scaling, "dropout_p": dropout}
        mixed = scaled_dot_product_attention(q_NHRWD.flatten(1, 2), keys, values, mask_N11WS.squeeze(1), **more)
        found: Tensor = mixed.unflatten(1, (-1, repeats))
        return found
    wide = torch.promote_types(q_NHRWD.dtype, torch.float32)
    q_NHQD = q_NHRWD.flatten(2, 3).to(wide)  # heads of queries below each other, so that no keys are repeated
    scale = q_NHQD.shape[-1] ** -0.5 if scaling is None else scaling
    unseen_N11WS = torch.zeros_like(mask_N11WS, dtype=wide).masked_fill_(~mask_N11WS, float("-inf"))
    with torch.autocast(q_NHQD.device.type, enabled=False):  # it would round scores
        scores_NHRWS = product(q_NHQD * scale, k_NHSD.mT).unflatten(2, q_NHRWD.shape[2:4]).add_(unseen_N11WS)
        weights_NHRWS = dropped(scores_NHRWS.softmax(-1), dropout)
        found = product(weights_NHRWS.flatten(2, 3), v_NHSD).unflatten(2, q_NHRWD.shape[2:4])
    return found.to(q_NHRWD.dtype)


AttentionInterface.register(IN_ROWS, _attention)
AttentionMaskInterface.register(IN_ROWS, sdpa_mask)
