"""The prompts of a batch, computed before the first token is drawn: what several begin with is computed once.

What all begin with comes first. The rest is computed in passes, each of a tree of tokens that see what leads to them.

Shapes: B rows of a batch (one per sample), L lines, P distinct prompts, N of them in a pass, S tokens of a prompt at
most, behind those that all begin with, T tokens of a tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from stasc.engines.hf.cache import RoomyCache
from stasc.engines.hf.shared import SharedPrompts
from stasc.models import lengths, precision
from stasc.prefix_tree import costs, masks, probe
from stasc.prefix_tree.trie import Trie, common, parts
from stasc.tracking import fallback

if TYPE_CHECKING:
    from transformers import Cache

    from stasc.models.model import Network


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
    mask = _mask(model)
    if mask is None or not probe.sees_all(model, max(map(len, distinct)) + room):
        logits_PV, batch = _plain(model, distinct)
    else:
        logits_PV, batch = _shared(model, distinct, len(prompts), room, most_tokens, mask)
    return logits_PV, [place[prompt] for prompt in prompts], batch


def _shared(
    model: Network,
    distinct: Sequence[tuple[int, ...]],
    most_lines: int,
    room: int,
    most_tokens: int,
    mask: masks.Mask,
) -> tuple[Tensor, Batch]:
    """Logits (P, V) of distinct prompts, and the batch of at most so many lines."""
    shared = min(common(min(distinct), max(distinct)), *(len(prompt) - 1 for prompt in distinct))
    layers = model.config.get_text_config().num_hidden_layers
    first, kept = RoomyCache(layers), RoomyCache(layers)
    if shared:
        ids = torch.tensor([distinct[0][:shared]], device=model.device)
        model(input_ids=ids, past_key_values=first, use_cache=True, logits_to_keep=1)
    if mask != "rows":  # scores of all tokens of a pass are computed
        most_tokens = min(most_tokens, costs.worthwhile(model))
    rests = [prompt[shared:] for prompt in distinct]
    longest = max(map(len, rests))
    logits_PV = torch.empty(0)
    for part in parts(rests, most_tokens):
        trie = Trie()
        paths = [trie.add(rests[p]) for p in part]
        logits_NV, computed = _forward(model, trie, [path[-1] for path in paths], first, mask)
        if not len(logits_PV):
            logits_PV = logits_NV.new_empty(len(distinct), logits_NV.shape[-1])
            kept.allocate(computed, len(distinct), longest)
        logits_PV[part] = logits_NV
        columns = [[shared + token for token in path] + [0] * (longest - len(path)) for path in paths]
        part_N, columns_NS = (torch.tensor(i, device=model.device) for i in (part, columns))
        kept.take(part_N, computed, columns_NS)
    lengths_P = torch.tensor([len(rest) for rest in rests], device=model.device)
    return logits_PV, SharedPrompts(first, kept, lengths_P, most_lines, room)


def _forward(
    model: Network, trie: Trie, ends: Sequence[int], first: RoomyCache, mask: masks.Mask
) -> tuple[Tensor, RoomyCache]:
    """Logits (N, V) of some tokens of a tree, and the cache of all its tokens, which stand behind the `first`."""
    before, computed = first.get_seq_length(), first.copy()
    attended = masks.attended(trie, mask, model.device, before)
    with masks.attending(model, mask):
        logits_1NV = model(
            input_ids=torch.tensor([trie.ids], device=model.device),
            position_ids=before + torch.tensor([trie.depths()], device=model.device),
            past_key_values=computed,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=model.device),
            **{name: value.to(model.device) for name, value in attended.items()},
        ).logits
    return logits_1NV[0], computed


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


_masks: WeakKeyDictionary[Network, dict[torch.dtype, masks.Mask | None]] = WeakKeyDictionary()


def shares(model: Network) -> bool:
    """Whether prompts are held once for all their answers."""
    return _mask(model) is not None


def lengths_of(model: Network, longest: int) -> lengths.Lengths:
    """Returns which prompts may share a pass, where prompts and answers have at most `longest` tokens."""
    seen = probe.sees_all(model, longest)
    if not seen:
        fallback.report(
            "no prefix sharing", f"some layers of this model see fewer than the {longest} tokens of a prompt and answer"
        )
    padded = _mask(model) is None or not seen
    return lengths.Lengths(lengths.switches(model), apart=padded and not probe.pads(model))


def _mask(model: Network) -> masks.Mask | None:
    """What masks of trees are for this network, None if prompts cannot be shared. It is looked at once."""
    known = _masks.setdefault(model, {})
    if model.dtype not in known:
        mask, fault = probe.probe(model, model.dtype)
        fault = _fault(model, mask) if mask is not None else fault
        if fault:
            fallback.report("no prefix sharing", fault)
        known[model.dtype] = None if fault else mask
    return known[model.dtype]


def _fault(model: Network, mask: masks.Mask) -> str:
    """Returns why answers with a shared prompt differ from answers in rows of their own; empty if they do not.

    Attention may be more than a softmax of scores. That is seen from short answers, in float32 or wider, as rounding
    to 16 bits could hide a difference, or be taken for one.
    """
    attempt = probe.Attempt()
    with attempt, precision.widened(model):
        _, shared = _shared(model, [(1, 2, 3), (1, 2, 4, 5)], 3, 2, 100, mask)
        shared.select(torch.tensor([1, 0, 1], device=model.device))
        plain = [_plain(model, [prompt])[1] for prompt in ((1, 2, 4, 5), (1, 2, 3))]  # without padding
        plain[0].select(torch.tensor([0, 0], device=model.device))
        for ids, first, second in (([6, 7, 8], [6, 8], [7]), ([9, 6, 6], [9, 6], [6])):
            outputs = [
                batch.forward(model, torch.tensor(some, device=model.device), output_hidden_states=True)
                for batch, some in ((shared, ids), (plain[0], first), (plain[1], second))
            ]
        found, one, other = (probe.compared(model, output) for output in outputs)
        expected = torch.stack([one[0], other[0], one[1]])
        attempt.compare(found, expected, probe.tolerance(model))
    return attempt.fault
