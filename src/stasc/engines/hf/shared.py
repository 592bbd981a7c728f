"""Sequences that share the KV cache of their prompts, which hold one copy for all samples of a question.

A token attends to three segments: the prefix of all prompts, the remainder of its own prompt, and its own answer. The
scores of all three enter one softmax, so the result equals attention over the whole sequence. A prompt with far more
sequences than the others is held several times, because every prompt gets the same number of slots.

Shapes: S sequences (each one or more samples that are equal so far), P prompts, M slots of a prompt, one per sequence,
F tokens of the common prefix, L tokens of a prompt behind it, T tokens of answers with spare capacity, H key-value
heads, R query heads per key-value head, D size of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from stasc.engines.hf.cache import PreallocatedCache, compact
from stasc.models.model import Network
from stasc.prefix_tree import attention

_NAME = "stasc_shared_prompts"  # names this attention in transformers' registry
_SPARE = 32  # answer tokens that are allocated at once
_PROMPT_COST = 3  # sequences whose attention costs as much as reading a prompt's keys and values once
_WORTHWHILE = 3 / 4  # copies are made if they lower the cost to this fraction, as making them takes time


def copies(sequences_P: Sequence[int]) -> tuple[list[int], int]:
    """Returns how often to hold each prompt, given its number of sequences, and the slots per copy, at least cost."""

    def times(slots: int) -> list[int]:
        return [-(-sequences // slots) for sequences in sequences_P]

    slots = min(sorted(set(sequences_P)), key=lambda slots: cost(sum(times(slots)), slots))
    return times(slots), slots


def cost(prompts: int, slots: int) -> int:
    """Returns the cost of attention, in sequences, for some prompts with as many slots each."""
    return prompts * (slots + _PROMPT_COST)


class SharedPrompts:
    """The sequences of a batch, see `Batch`; at first, one per prompt.

    Args:
        prefix: one row, the tokens that all prompts begin with; may be empty.
        prompts: P rows, the remainders of the prompts.
        lengths_P: lengths of the remainders, int64; the tokens behind are padding.
        max_sequences: the most sequences there will be.
        max_new_tokens: the most tokens of an answer.
    """

    def __init__(
        self,
        prefix: PreallocatedCache,
        prompts: PreallocatedCache,
        lengths_P: Tensor,
        max_sequences: int,
        max_new_tokens: int,
    ) -> None:
        self._prefix, self._prompts, self._lengths_P = prefix, prompts, lengths_P
        self._prompt_S = torch.arange(len(lengths_P), device=lengths_P.device)
        self._original_P = self._prompt_S  # equal for copies of one prompt
        self._answers = PreallocatedCache(len(prompts.layers), min(max_new_tokens, _SPARE), max_sequences)
        self._assign_slots()

    def forward(self, model: Network, ids_S: Tensor, **more: bool) -> Any:
        """Returns the model's output for one more token per sequence."""
        lengths_S = self._prefix.get_seq_length() + self._lengths_P[self._prompt_S] + self._answers.get_seq_length()
        with _attending(model, self):
            return model(
                input_ids=ids_S.unsqueeze(1),
                position_ids=lengths_S.unsqueeze(1),
                past_key_values=self._answers,
                use_cache=True,
                **more,
            )

    def select(self, parent_S: Tensor) -> None:
        """Replaces the sequences by branches of `parent_S`."""
        self._answers.select(parent_S)
        self._prompt_S = self._prompt_S[parent_S]
        if not self._copy_prompts():
            self._drop_prompts()
        self._assign_slots()

    def _drop_prompts(self) -> None:
        """Drops prompts without sequences."""
        used_P = self._prompt_S.bincount(minlength=len(self._lengths_P)) > 0
        kept = compact(used_P)
        if len(kept) < len(used_P):
            self._prompts.select(kept)
            new_P = torch.empty_like(self._lengths_P)
            new_P[kept] = torch.arange(len(kept), device=kept.device)
            self._prompt_S = new_P[self._prompt_S]
            self._lengths_P, self._original_P = self._lengths_P[kept], self._original_P[kept]

    def _copy_prompts(self) -> bool:
        """Holds each prompt as often as costs least, if that is worthwhile. Returns whether it is."""
        sequences_P, _ = _ranks(self._prompt_S, len(self._lengths_P))
        used = int(sequences_P.count_nonzero())
        originals, original_S = self._original_P[self._prompt_S].unique(return_inverse=True)
        sequences_O, rank_S = _ranks(original_S, len(originals))
        times, slots = copies(sequences_O.tolist())
        if cost(sum(times), slots) > _WORTHWHILE * cost(used, int(sequences_P.max())):
            return False
        times_O = torch.tensor(times, device=sequences_O.device)
        one_O = torch.empty_like(originals)
        one_O[original_S] = self._prompt_S
        copied = one_O.repeat_interleave(times_O)
        self._prompts.batch_select_indices(copied)
        self._lengths_P, self._original_P = self._lengths_P[copied], self._original_P[copied]
        self._prompt_S = (times_O.cumsum(0) - times_O)[original_S] + rank_S // slots
        return True

    def _assign_slots(self) -> None:
        """Assigns each sequence one of the M slots of its prompt."""
        sequences_P, rank_S = _ranks(self._prompt_S, len(self._lengths_P))
        self._slots = int(sequences_P.max())
        slot_S = self._prompt_S * self._slots + rank_S
        full = len(slot_S) == len(sequences_P) * self._slots
        in_order = full and bool((slot_S == torch.arange(len(slot_S), device=slot_S.device)).all())
        self._slot_S = None if in_order else slot_S
        width = self._prompts.get_seq_length()
        self._padding_PL = torch.arange(width, device=rank_S.device) >= self._lengths_P.unsqueeze(1)

    def attend(self, layer: int, q_SHRD: Tensor) -> Tensor:
        """Returns the attention output of each sequence's newest token (S, H, R, D) for scaled queries.

        All numbers are float32 or wider: with large keys, rounding scores to 16 bits would change the largest weight.
        """
        prefix, prompts = self._prefix.layers[layer], self._prompts.layers[layer]
        keys_SHTD, values_SHTD = self._answers.layers[layer].padded  # the part in use would be copied by each product
        scores = [attention.product(q_SHRD, keys_SHTD.mT)]
        scores[0][..., self._answers.layers[layer].get_seq_length() :] = float("-inf")
        scores.append(self._by_prompt(q_SHRD, prompts.keys.mT, self._padding_PL))
        if prefix.get_seq_length():
            scores.append(_by_all(q_SHRD, prefix.keys[0].mT))
        weights = torch.cat(scores, dim=-1).softmax(-1)
        segments = weights.split([segment.shape[-1] for segment in scores], dim=-1)
        output_SHRD = attention.product(segments[0], values_SHTD) + self._by_prompt(segments[1], prompts.values)
        if prefix.get_seq_length():
            output_SHRD = output_SHRD + _by_all(segments[2], prefix.values[0])
        return output_SHRD

    def _by_prompt(self, x_SHRK: Tensor, matrix_PHKN: Tensor, padding_PN: Tensor | None = None) -> Tensor:
        """Returns the product (S, H, R, N) of each sequence with its prompt's matrix, -inf at padding."""
        _, heads, repeats, size = x_SHRK.shape
        prompts, by_slot = len(matrix_PHKN), x_SHRK
        if self._slot_S is not None:
            by_slot = x_SHRK.new_zeros(prompts * self._slots, heads, repeats, size)
            by_slot[self._slot_S] = x_SHRK
        grouped = by_slot.view(prompts, self._slots, heads, repeats, size).transpose(1, 2).flatten(2, 3)
        found = attention.product(grouped, matrix_PHKN).unflatten(2, (self._slots, repeats))  # (P, H, M, R, N)
        if padding_PN is not None:
            found = found.masked_fill(padding_PN[:, None, None, None], float("-inf"))
        product: Tensor = found.transpose(1, 2).flatten(0, 1)
        return product if self._slot_S is None else product[self._slot_S]


def _ranks(prompt_S: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """Returns how many sequences each prompt has (P,), and how many of them precede each sequence (S,)."""
    sequences_P = prompt_S.bincount(minlength=prompts)
    order_S = prompt_S.argsort(stable=True)
    before_P = sequences_P.cumsum(0) - sequences_P
    rank_S = torch.empty_like(order_S)
    rank_S[order_S] = torch.arange(len(order_S), device=order_S.device) - before_P[prompt_S[order_S]]
    return sequences_P, rank_S


def _by_all(x_SHRK: Tensor, matrix_HKN: Tensor) -> Tensor:
    """Returns the product (S, H, R, N) of all sequences with one matrix per head."""
    sequences, _, repeats, _ = x_SHRK.shape
    product = attention.product(x_SHRK.transpose(0, 1).flatten(1, 2), matrix_HKN)
    found: Tensor = product.unflatten(1, (sequences, repeats)).transpose(0, 1)
    return found


_current: ContextVar[SharedPrompts] = ContextVar("_current")


@contextmanager
def _attending(model: Network, batch: SharedPrompts) -> Iterator[None]:
    """Makes the model's attention include a batch's prompts."""
    token = _current.set(batch)
    try:
        with attention.using(model, _NAME):
            yield
    finally:
        _current.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Implements transformers' attention interface.

    Takes queries (S, H R, 1, D), keys and values (S, H, T, D). Returns (S, 1, H R, D).
    """
    attention.expect_plain(kwargs)
    q_SHRD = query.squeeze(2).unflatten(1, (key.shape[1], -1))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    scaled_SHRD = q_SHRD.to(torch.promote_types(query.dtype, torch.float32)) * scale
    output_SHRD = _current.get().attend(layer, scaled_SHRD)  # the cache holds keys and values
    return output_SHRD.to(query.dtype).flatten(1, 2).unsqueeze(1), None


AttentionInterface.register(_NAME, _attention)
