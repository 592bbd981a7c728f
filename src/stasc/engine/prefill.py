"""The prompts of a batch, computed before the first token is drawn: what several begin with is computed once.

What all begin with comes first. The rest is computed in rows, one for a prompt, or for several that share so much that
it pays: a tree of tokens, whose mask lets each see what leads to it.

Shapes: B rows of a batch (one per sample), L lines, P distinct prompts, S tokens of a prompt at most, behind those that
all begin with, R rows of one forward pass with W tokens each, T tokens of a tree, E ends of prompts in a row, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from stasc import attention, packing
from stasc.engine.cache import RoomyCache, sees_all
from stasc.engine.shared import SharedPrompts
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

    def columns(self, width: int) -> list[list[int]]:
        """Where the tokens of each prompt stand in a row of so many, at its end."""
        column = {token: width - len(self.trie) + k for k, token in enumerate(self.order())}
        return [[column[token] for token in path] for path in self.paths]


class Batch(Protocol):
    """The lines of a batch, one or several rows that are alike, with what was computed of them so far.

    At first, there is one for each distinct prompt.
    """

    def forward(self, model: Network, ids_L: Tensor, **more: bool) -> Any:
        """What the model gives for one more token of each line."""

    def select(self, parent_L: Tensor) -> None:
        """Goes on with lines that continue these."""


@dataclass
class Plain:
    """Lines of a model whose attention is its own affair, with their mask (L, S)."""

    cache: Cache
    mask_LS: Tensor

    def forward(self, model: Network, ids_L: Tensor, **more: bool) -> Any:
        self.mask_LS = torch.cat([self.mask_LS, self.mask_LS.new_ones(len(self.mask_LS), 1)], dim=1)
        return model(
            input_ids=ids_L.unsqueeze(1),
            attention_mask=self.mask_LS,
            position_ids=self.mask_LS.sum(1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
            **more,
        )

    def select(self, parent_L: Tensor) -> None:
        self.mask_LS = self.mask_LS[parent_L]
        self.cache.reorder_cache(parent_L)  # type: ignore[arg-type]  # every kind of layer can do this


def prefill(
    model: Network, prompts: Sequence[tuple[int, ...]], room: int, most_tokens: int
) -> tuple[Tensor, list[int], Batch]:
    """Next-token logits of each line (L, V), the line of each of the B rows, and the batch.

    Args:
        room: how many tokens an answer has at most.
        most_tokens: of a forward pass.
    """
    distinct = list(dict.fromkeys(prompts))  # as they are asked, so that lines need not be brought in another order
    place = {prompt: p for p, prompt in enumerate(distinct)}
    traits = _traits(model)
    if traits.mask is None or not sees_all(model.config, max(map(len, distinct)) + room):
        logits_PV, batch = _plain(model, distinct)
    else:
        logits_PV, batch = _shared(model, distinct, len(prompts), room, most_tokens, traits)
    return logits_PV, [place[prompt] for prompt in prompts], batch


def _shared(
    model: Network,
    distinct: Sequence[tuple[int, ...]],
    most_lines: int,
    room: int,
    most_tokens: int,
    traits: _Traits,
) -> tuple[Tensor, Batch]:
    """Logits (P, V) of distinct prompts, and the batch of at most so many lines."""
    shared = min(common(min(distinct), max(distinct)), *(len(prompt) - 1 for prompt in distinct))
    layers = model.config.get_text_config().num_hidden_layers
    first, kept = RoomyCache(layers), RoomyCache(layers)
    if shared:
        ids = torch.tensor([distinct[0][:shared]], device=model.device)
        model(input_ids=ids, past_key_values=first, use_cache=True, logits_to_keep=1)
    rests = [prompt[shared:] for prompt in distinct]
    longest = max(map(len, rests))
    logits_PV = torch.empty(0)
    assert traits.mask is not None
    for rows in _batches(_rows(rests, traits.costs), most_tokens):
        logits_REV, computed = _forward(model, rows, first, shared, traits.mask)
        if not len(logits_PV):
            logits_PV = logits_REV.new_empty(len(distinct), logits_REV.shape[-1])
            kept.allocate(computed, len(distinct), longest)
        targets, sources, ends, paths = [], [], [], []
        for r, row in enumerate(rows):
            for e, (p, columns) in enumerate(zip(row.prompts, row.columns(computed.get_seq_length()), strict=True)):
                targets.append(p)
                sources.append(r)
                ends.append(e - len(row.prompts))
                paths.append(columns + [0] * (longest - len(columns)))
        logits_PV[targets] = logits_REV[sources, ends]
        targets_p, sources_p, columns_pS = (torch.tensor(i, device=model.device) for i in (targets, sources, paths))
        kept.take(targets_p, computed, sources_p, columns_pS)
    lengths_P = torch.tensor([len(rest) for rest in rests], device=model.device)
    return logits_PV, SharedPrompts(first, kept, lengths_P, most_lines, room)


def _rows(rests: Sequence[tuple[int, ...]], cost: Costs) -> list[Row]:
    """Rows of prompts. Sorted, one joins the row of those before it if it has more in common than its scores cost."""
    rows: list[Row] = []
    before: tuple[int, ...] = ()
    for p in sorted(range(len(rests)), key=lambda p: rests[p]):
        shared = common(before, rests[p])
        scores = (len(rests[p]) - shared) * (len(rows[-1].trie) if rows else 0)
        if not rows or shared * cost.token <= _DEAR * 2 * scores * cost.pair:
            rows.append(Row())
        rows[-1].add(p, rests[p])
        before = rests[p]
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
    model: Network, rows: Sequence[Row], first: RoomyCache, shared: int, mask: packing.Mask
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
    with attention.using(model, attention.IN_ROWS) if mask == torch.bool else nullcontext():
        logits_REV = model(
            input_ids=ids_RW.to(model.device),
            attention_mask=packing.as_mask(seen_RWS.to(model.device), mask),
            position_ids=positions_RW.to(model.device),
            past_key_values=computed,
            use_cache=True,
            logits_to_keep=max(len(row.paths) for row in rows),
        ).logits
    return logits_REV, computed


def _plain(model: Network, distinct: Sequence[tuple[int, ...]]) -> tuple[Tensor, Batch]:
    """The same for a model whose attention is its own affair: each distinct prompt once, and nothing shared."""
    width = max(map(len, distinct))
    ids_PS = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in distinct], device=model.device)
    mask_PS = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in distinct], device=model.device
    )
    cache = DynamicCache(config=model.config)
    logits_PV = model(
        input_ids=ids_PS,
        attention_mask=mask_PS,
        position_ids=(mask_PS.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits_PV, Plain(cache, mask_PS)


class _Traits(NamedTuple):
    """What masks of trees are for a network, None if prompts cannot be shared; and what it costs."""

    mask: packing.Mask | None
    costs: Costs


_known: WeakKeyDictionary[Network, dict[torch.dtype, _Traits]] = WeakKeyDictionary()


def shares(model: Network) -> bool:
    """Whether prompts are held once for all their answers."""
    return _traits(model).mask is not None


def _traits(model: Network) -> _Traits:
    """Those of this network, which are looked at once."""
    known = _known.setdefault(model, {})
    if model.dtype not in known:
        traits = _Traits(packing.mask_dtype(model, model.dtype), costs(model))
        known[model.dtype] = traits if _shares(model, traits) else traits._replace(mask=None)
    return known[model.dtype]


def _shares(model: Network, traits: _Traits) -> bool:
    """Whether answers that share their prompts are what they are with a row for each.

    That is seen from short ones: attention may be more than a softmax of scores. In 16 bits, only the first layer can
    be compared; behind all of them, rounding alone may have changed everything.
    """
    if traits.mask is None:
        return False
    wide = model.dtype.itemsize > 2
    prompts, parent_L = [(1, 2, 3), (1, 2, 4, 5)], torch.tensor([1, 0, 1], device=model.device)
    batches = (
        lambda: _shared(model, prompts, len(parent_L), 2, 100, traits),
        lambda: _plain(model, prompts),
    )
    found: list[Tensor] = []
    with packing.Unable():
        for make in batches:
            _, batch = make()
            batch.select(parent_L)
            for ids in ([6, 7, 8], [9, 6, 6]):
                output = batch.forward(model, torch.tensor(ids, device=model.device), output_hidden_states=True)
            found.append(output.logits[:, -1] if wide else output.hidden_states[1][:, -1].float())
        shared, plain = found
        return bool(((shared - plain).norm(dim=1) <= plain.norm(dim=1) * (1e-3 if wide else 0.03)).all())
    return False
