"""The prompts of a batch, computed before the first token is drawn: what several begin with is computed once.

What all begin with comes first. The rest is computed in rows, one for a prompt, or for several that share so much that
it pays: a tree of tokens, whose mask lets each see what leads to it.

Shapes: B rows (one per sample), S tokens of a prompt at most, P distinct prompts, R rows of one forward pass with W
tokens each, T tokens of a tree, E ends of prompts in a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from stasc import packing
from stasc.engine import cache
from stasc.engine.cache import RoomyCache
from stasc.trie import Costs, Trie, common, costs

if TYPE_CHECKING:
    from transformers import Cache

    from stasc.model import Network

_DEAR = 3  # a score costs so many times the operations of a matrix product, for it is computed at a lower rate


@dataclass
class Row:
    """A tree of prompts: which they are, and the path of each. Its last tokens are those that end a prompt."""

    trie: Trie = field(default_factory=Trie)
    prompts: list[int] = field(default_factory=list)
    paths: list[list[int]] = field(default_factory=list)

    def add(self, prompt: int, ids: Sequence[int]) -> None:
        self.prompts.append(prompt)
        self.paths.append(self.trie.add(ids))

    def order(self) -> list[int]:
        """The tokens as they stand in the row: ends last, as only their logits are wanted."""
        ends = [path[-1] for path in self.paths]
        return [*sorted(set(range(len(self.trie))).difference(ends)), *ends]

    def columns(self, shared: int, width: int) -> list[list[int]]:
        """Where the tokens of each prompt stand in a row of so many, behind those that all share."""
        column = {token: width - len(self.trie) + k for k, token in enumerate(self.order())}
        return [[*range(shared), *(column[token] for token in path)] for path in self.paths]


def prefill(
    model: Network, prompts: Sequence[tuple[int, ...]], room: int, most_tokens: int
) -> tuple[Tensor, Cache, Tensor]:
    """Next-token logits (B, V), the cache with room for so many tokens, and its mask (B, S), of each row's prompt.

    Args:
        most_tokens: of a forward pass.
    """
    distinct = sorted(set(prompts))
    place = {prompt: p for p, prompt in enumerate(distinct)}
    asked: list[list[int]] = [[] for _ in distinct]  # the rows of each prompt
    for b, prompt in enumerate(prompts):
        asked[place[prompt]].append(b)
    longest = max(map(len, distinct))
    mask, cost = _traits(model)
    kept = cache.make(model.config, longest + room, room)
    if mask is None or not isinstance(kept, RoomyCache):
        return _plain(model, distinct, [place[prompt] for prompt in prompts], kept)

    shared = min(common(distinct[0], distinct[-1]), *(len(prompt) - 1 for prompt in distinct))
    first = RoomyCache(len(kept.layers))
    if shared:
        ids = torch.tensor([distinct[0][:shared]], device=model.device)
        model(input_ids=ids, past_key_values=first, use_cache=True, logits_to_keep=1)
    logits_BV = torch.empty(0)
    mask_BS = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for rows in _batches(_rows([prompt[shared:] for prompt in distinct], cost), most_tokens):
        logits_REV, computed = _forward(model, rows, first, shared, mask)
        if not len(logits_BV):
            logits_BV = logits_REV.new_empty(len(prompts), logits_REV.shape[-1])
            kept.allocate(computed, len(prompts), longest)
        targets, sources, ends, paths = [], [], [], []
        for r, row in enumerate(rows):
            columns = row.columns(shared, computed.get_seq_length())
            for e, p in enumerate(row.prompts):
                for b in asked[p]:
                    targets.append(b)
                    sources.append(r)
                    ends.append(e - len(row.prompts))
                    paths.append([0] * (longest - len(columns[e])) + columns[e])
                    mask_BS[b, longest - len(columns[e]) :] = 1
        logits_BV[targets] = logits_REV[sources, ends]
        rows_b, sources_b, columns_bS = (torch.tensor(i, device=model.device) for i in (targets, sources, paths))
        kept.take(rows_b, computed, sources_b, columns_bS)
    return logits_BV, kept, mask_BS.to(model.device)


def _rows(rests: Sequence[tuple[int, ...]], cost: Costs) -> list[Row]:
    """Rows of sorted prompts. One joins the row of those before it if it has more in common than its scores cost."""
    rows: list[Row] = []
    for p, ids in enumerate(rests):
        shared = common(rests[p - 1], ids) if p else 0
        if not p or shared * cost.token <= _DEAR * 2 * (len(ids) - shared) * len(rows[-1].trie) * cost.pair:
            rows.append(Row())
        rows[-1].add(p, ids)
    return rows


def _batches(rows: Sequence[Row], most_tokens: int) -> Iterator[list[Row]]:
    """Rows of like length, of at most so many tokens with their padding, or one."""
    some: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.trie)):
        if some and (len(some) + 1) * len(row.trie) > most_tokens:
            yield some
            some = []
        some.append(row)
    yield some


def _forward(
    model: Network, rows: Sequence[Row], first: RoomyCache, shared: int, mask: torch.dtype
) -> tuple[Tensor, RoomyCache]:
    """Logits (R, E, V) of the last E tokens of each row, and the cache of all its tokens behind the shared ones."""
    width = max(len(row.trie) for row in rows)
    ids_RW = torch.zeros(len(rows), width, dtype=torch.int64)
    positions_RW = torch.zeros(len(rows), width, dtype=torch.int64)
    seen_RWS = torch.zeros(len(rows), width, shared + width, dtype=torch.bool)
    seen_RWS[:, :, :shared] = True
    seen_RWS[:, range(width), range(shared, shared + width)] = True  # padding too: a row of nothing is no number
    for r, row in enumerate(rows):
        order, seen_TT = torch.tensor(row.order()), row.trie.seen()
        start = width - len(order)
        ids_RW[r, start:] = torch.tensor(row.trie.ids)[order]
        positions_RW[r, start:] = shared + seen_TT.sum(1)[order] - 1
        seen_RWS[r, start:, shared + start :] = seen_TT[order][:, order]
    computed = first.copies(len(rows))
    logits_REV = model(
        input_ids=ids_RW.to(model.device),
        attention_mask=packing.as_mask(seen_RWS, mask).unsqueeze(1).to(model.device),
        position_ids=positions_RW.to(model.device),
        past_key_values=computed,
        use_cache=True,
        logits_to_keep=max(len(row.paths) for row in rows),
    ).logits
    return logits_REV, computed


def _plain(
    model: Network, distinct: Sequence[tuple[int, ...]], rows: Sequence[int], kept: Cache
) -> tuple[Tensor, Cache, Tensor]:
    """The same for a model whose attention is its own affair: each distinct prompt once, and nothing shared."""
    width = max(map(len, distinct))
    ids_PS = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in distinct], device=model.device)
    mask_PS = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in distinct], device=model.device
    )
    logits_PV = model(
        input_ids=ids_PS,
        attention_mask=mask_PS,
        position_ids=(mask_PS.cumsum(1) - 1).clamp(min=0),
        past_key_values=kept,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    index = torch.tensor(rows, device=model.device)
    kept.batch_select_indices(index)
    return logits_PV[index], kept, mask_PS[index]


_known: WeakKeyDictionary[Network, dict[torch.dtype, tuple[torch.dtype | None, Costs]]] = WeakKeyDictionary()


def _traits(model: Network) -> tuple[torch.dtype | None, Costs]:
    """What masks are for this network, and what it costs. Both are looked at once."""
    known = _known.setdefault(model, {})
    if model.dtype not in known:
        known[model.dtype] = packing.mask_dtype(model, model.dtype), costs(model)
    return known[model.dtype]
