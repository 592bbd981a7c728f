"""Computes the prompts of a batch before decoding; common prefixes are computed once.

The prefix of all prompts comes first. The remainders follow in forward passes over prefix trees, whose tokens attend to
their own prompt alone.

Shapes: B samples, S sequences, P distinct prompts, N of them in one pass, L tokens of the longest remainder, T tokens
of a tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache

from stasc.engines.hf.cache import PreallocatedCache
from stasc.engines.hf.shared import SharedPrompts
from stasc.models import lengths, precision
from stasc.models.model import Network
from stasc.prefix_tree import attention, probe
from stasc.prefix_tree.trie import Trie, common_prefix_length, partition, tokens_per_pass
from stasc.tracking import fallback


class Batch(Protocol):
    """The sequences of a batch and their KV cache; at first one per distinct prompt, each for one or more samples."""

    def forward(self, model: Network, ids_S: Tensor, **more: bool) -> Any:
        """Returns the model's output for one more token per sequence."""

    def select(self, parent_S: Tensor) -> None:
        """Replaces the sequences by branches of `parent_S`."""


@dataclass
class Padded:
    """The sequences of a model that cannot share prompts, with their left-padding mask (S, tokens), see `Batch`."""

    cache: Cache
    mask_SL: Tensor

    def forward(self, model: Network, ids_S: Tensor, **more: bool) -> Any:
        self.mask_SL = torch.cat([self.mask_SL, self.mask_SL.new_ones(len(self.mask_SL), 1)], dim=1)
        return model(
            input_ids=ids_S.unsqueeze(1),
            attention_mask=self.mask_SL,
            position_ids=self.mask_SL.sum(1, keepdim=True) - 1,
            past_key_values=self.cache,
            use_cache=True,
            **more,
        )

    def select(self, parent_S: Tensor) -> None:
        self.mask_SL = self.mask_SL[parent_S]
        self.cache.reorder_cache(parent_S)  # type: ignore[arg-type]  # every kind of layer can do this


def prefill(
    model: Network, prompts: Sequence[tuple[int, ...]], max_new_tokens: int, max_tokens: int
) -> tuple[Tensor, list[int], Batch]:
    """Returns the next-token logits of each sequence (S, V), the sequence of each of the B prompts, and the batch.

    Args:
        max_new_tokens: the most tokens of an answer.
        max_tokens: the most tokens of a forward pass.
    """
    distinct = list(dict.fromkeys(prompts))  # in order, so that no sequence has to move
    index = {prompt: p for p, prompt in enumerate(distinct)}
    mask = _mask(model)
    if mask is None or not probe.attends_to_all(model, max(map(len, distinct)) + max_new_tokens):
        logits_PV, batch = _padded(model, distinct)
    else:
        logits_PV, batch = _shared(model, distinct, len(prompts), max_new_tokens, max_tokens, mask)
    return logits_PV, [index[prompt] for prompt in prompts], batch


def _shared(
    model: Network,
    distinct: Sequence[tuple[int, ...]],
    max_sequences: int,
    max_new_tokens: int,
    max_tokens: int,
    mask: attention.Mask,
) -> tuple[Tensor, Batch]:
    """Returns the logits (P, V) of distinct prompts, and the batch that shares their KV cache."""
    shared = min(common_prefix_length(min(distinct), max(distinct)), *(len(prompt) - 1 for prompt in distinct))
    layers = model.config.get_text_config().num_hidden_layers
    prefix, cache = PreallocatedCache(layers), PreallocatedCache(layers)
    if shared:
        ids = torch.tensor([distinct[0][:shared]], device=model.device)
        model(input_ids=ids, past_key_values=prefix, use_cache=True, logits_to_keep=1)
    if mask != "rows":  # other masks compute the scores between all tokens of a pass
        max_tokens = min(max_tokens, tokens_per_pass(model))
    remainders = [prompt[shared:] for prompt in distinct]
    longest = max(map(len, remainders))
    logits_PV = torch.empty(0)
    for part in partition(remainders, max_tokens):
        trie = Trie()
        paths = [trie.add(remainders[p]) for p in part]
        logits_NV, computed = _forward(model, trie, [path[-1] for path in paths], prefix, mask)
        if not len(logits_PV):
            logits_PV = logits_NV.new_empty(len(distinct), logits_NV.shape[-1])
            cache.allocate(computed, len(distinct), longest)
        logits_PV[part] = logits_NV
        columns = [[shared + token for token in path] + [0] * (longest - len(path)) for path in paths]
        part_N, columns_NL = (torch.tensor(i, device=model.device) for i in (part, columns))
        cache.copy_from(computed, part_N, columns_NL)
    lengths_P = torch.tensor([len(remainder) for remainder in remainders], device=model.device)
    return logits_PV, SharedPrompts(prefix, cache, lengths_P, max_sequences, max_new_tokens)


def _forward(
    model: Network, trie: Trie, ends: Sequence[int], prefix: PreallocatedCache, mask: attention.Mask
) -> tuple[Tensor, PreallocatedCache]:
    """Returns the logits (N, V) of the tokens `ends` of a tree, and the KV cache of the prefix and the whole tree."""
    before, computed = prefix.get_seq_length(), prefix.copy()
    arguments = attention.mask_arguments(trie, mask, model.device, before)
    with attention.tree_attention(model, mask):
        logits_1NV = model(
            input_ids=torch.tensor([trie.ids], device=model.device),
            position_ids=before + torch.tensor([trie.depths()], device=model.device),
            past_key_values=computed,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=model.device),
            **{name: value.to(model.device) for name, value in arguments.items()},
        ).logits
    return logits_1NV[0], computed


def _padded(model: Network, distinct: Sequence[tuple[int, ...]]) -> tuple[Tensor, Batch]:
    """Returns logits and batch of distinct prompts, one left-padded row each, for models that cannot share."""
    rows = [torch.tensor(prompt, device=model.device) for prompt in distinct]
    ids_PL = pad_sequence(rows, batch_first=True, padding_side="left")
    mask_PL = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    cache = DynamicCache(config=model.config)
    logits_PV = model(
        input_ids=ids_PL,
        attention_mask=mask_PL,
        position_ids=(mask_PL.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1]
    return logits_PV, Padded(cache, mask_PL)


_masks: WeakKeyDictionary[Network, dict[torch.dtype, attention.Mask | None]] = WeakKeyDictionary()


def shares(model: Network) -> bool:
    """Returns whether samples can share the KV cache of their prompt."""
    return _mask(model) is not None


def lengths_of(model: Network, longest: int) -> lengths.Lengths:
    """Returns which prompts may share a pass, where prompts and answers have at most `longest` tokens."""
    seen = probe.attends_to_all(model, longest)
    if not seen:
        fallback.report(
            "no prefix sharing", f"some layers of this model see fewer than the {longest} tokens of a prompt and answer"
        )
    padded = _mask(model) is None or not seen
    return lengths.Lengths(lengths.switches(model), apart=padded and not probe.pads(model))


def _mask(model: Network) -> attention.Mask | None:
    """Returns the kind of prefix-tree mask for a model, None if it cannot share prompts. Each model is probed once."""
    known = _masks.setdefault(model, {})
    if model.dtype not in known:
        mask, fault = probe.probe(model, model.dtype)
        fault = _fault(model, mask) if mask is not None else fault
        if fault:
            fallback.report("no prefix sharing", fault)
        known[model.dtype] = None if fault else mask
    return known[model.dtype]


def _fault(model: Network, mask: attention.Mask) -> str:
    """Returns why answers with a shared prompt differ from answers in rows of their own; empty if they do not.

    Some models compute more than a softmax of scores. Short answers show it. They are computed in float32 or wider:
    rounding to 16 bits could hide a difference, or look like one.
    """
    trial = probe.Trial()
    with trial, precision.widened(model):
        _, shared = _shared(model, [(1, 2, 3), (1, 2, 4, 5)], 3, 2, 100, mask)
        shared.select(torch.tensor([1, 0, 1], device=model.device))
        alone = [_padded(model, [prompt])[1] for prompt in ((1, 2, 4, 5), (1, 2, 3))]
        alone[0].select(torch.tensor([0, 0], device=model.device))
        for ids, first, second in (([6, 7, 8], [6, 8], [7]), ([9, 6, 6], [9, 6], [6])):
            outputs = [
                batch.forward(model, torch.tensor(some, device=model.device), output_hidden_states=True)
                for batch, some in ((shared, ids), (alone[0], first), (alone[1], second))
            ]
        found, one, other = (probe.compared(model, output) for output in outputs)
        expected = torch.stack([one[0], other[0], one[1]])
        trial.compare(found, expected, probe.tolerance(model))
    return trial.reason
