"""A batch that is being answered, where keys and values of prompts are held once for all answers to them.

A prompt that has far more lines than the others is held more than once, as all are given as much place.

What all prompts begin with, the rest of each prompt, and each answer are three parts of what a token looks at. The
scores of all three go into one softmax, so that it is the attention of a row that holds all of it.

Shapes: L lines (each one or more samples that are alike so far), P prompts, M lines of a prompt at most, F tokens that
all prompts begin with, S tokens of a prompt behind these, T tokens of answers with the room for more, H heads of keys,
R heads of queries for each of these, D size of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from stasc.engines.hf.cache import RoomyCache, staying
from stasc.prefix_tree import attention

if TYPE_CHECKING:
    from stasc.models.model import Network

_NAME = "stasc_shared_prompts"  # of this attention, in transformers' register
_ROOM = 32  # tokens of answers that place is made for at once
_COPY = 3  # to read a prompt's keys and values costs as much as so many lines
_ENOUGH = 3 / 4  # copies have to cost no more than that part of what is held now does, as to make them takes a while


def copies(lines_P: Sequence[int]) -> tuple[list[int], int]:
    """How often to hold each prompt, which has so many lines, and for how many lines each time: what costs least."""

    def times(most: int) -> list[int]:
        return [-(-lines // most) for lines in lines_P]

    most = min(sorted(set(lines_P)), key=lambda most: cost(sum(times(most)), most))
    return times(most), most


def cost(prompts: int, most: int) -> int:
    """Of so many prompts, held for so many lines each."""
    return prompts * (most + _COPY)


class SharedPrompts:
    """The lines of a batch; at first, there is one for each prompt.

    Args:
        first: of one row, what all prompts begin with; of no tokens if that is nothing.
        prompts: of P rows, the rest of each prompt.
        lengths_P: tokens of these, int64; what stands behind them is padding.
        most_lines: how many there can be.
        room: how many tokens an answer has at most.
    """

    def __init__(self, first: RoomyCache, prompts: RoomyCache, lengths_P: Tensor, most_lines: int, room: int) -> None:
        self._first, self._prompts, self._lengths_P = first, prompts, lengths_P
        self._prompt_L = torch.arange(len(lengths_P), device=lengths_P.device)
        self._original_P = self._prompt_L  # of copies of a prompt the same
        self._answers = RoomyCache(len(prompts.layers), min(room, _ROOM), most_lines)
        self._place()

    def forward(self, model: Network, ids_L: Tensor, **more: bool) -> Any:
        """What the model gives for one more token of each line."""
        positions_L = self._first.get_seq_length() + self._lengths_P[self._prompt_L] + self._answers.get_seq_length()
        with _attending(model, self):
            return model(
                input_ids=ids_L.unsqueeze(1),
                position_ids=positions_L.unsqueeze(1),
                past_key_values=self._answers,
                use_cache=True,
                **more,
            )

    def select(self, parent_L: Tensor) -> None:
        """Goes on with lines that continue these."""
        self._answers.keep(parent_L)
        self._prompt_L = self._prompt_L[parent_L]
        if not self._copy():
            self._drop()
        self._place()

    def _drop(self) -> None:
        """Goes on without prompts that have no lines any more."""
        asked_P = self._prompt_L.bincount(minlength=len(self._lengths_P)) > 0
        kept = staying(asked_P)
        if len(kept) < len(asked_P):
            self._prompts.keep(kept)
            new_P = torch.empty_like(self._lengths_P)
            new_P[kept] = torch.arange(len(kept), device=kept.device)
            self._prompt_L = new_P[self._prompt_L]
            self._lengths_P, self._original_P = self._lengths_P[kept], self._original_P[kept]

    def _copy(self) -> bool:
        """Holds prompts as often as costs least, if that is much less; tells whether it does so."""
        lines_P, _ = _ranks(self._prompt_L, len(self._lengths_P))
        held = lines_P.count_nonzero()
        originals, original_L = self._original_P[self._prompt_L].unique(return_inverse=True)
        lines_O, rank_L = _ranks(original_L, len(originals))
        times, most = copies(lines_O.tolist())
        if cost(sum(times), most) > _ENOUGH * cost(int(held), int(lines_P.max())):
            return False
        times_O = torch.tensor(times, device=lines_O.device)
        one_O = torch.empty_like(originals)
        one_O[original_L] = self._prompt_L
        copied = one_O.repeat_interleave(times_O)
        self._prompts.batch_select_indices(copied)
        self._lengths_P, self._original_P = self._lengths_P[copied], self._original_P[copied]
        self._prompt_L = (times_O.cumsum(0) - times_O)[original_L] + rank_L // most
        return True

    def _place(self) -> None:
        """Gives each line one of the M places of its prompt."""
        lines_P, rank_L = _ranks(self._prompt_L, len(self._lengths_P))
        self._most = int(lines_P.max())
        place_L = self._prompt_L * self._most + rank_L
        full = len(place_L) == len(lines_P) * self._most
        in_order = full and bool((place_L == torch.arange(len(place_L), device=place_L.device)).all())
        self._place_L = None if in_order else place_L
        width = self._prompts.get_seq_length()
        self._unseen_PS = torch.arange(width, device=rank_L.device) >= self._lengths_P.unsqueeze(1)

    def attend(self, layer: int, q_LHRD: Tensor) -> Tensor:
        """Returns the attention output of each line's newest token (L, H, R, D), float32 or wider, for scaled queries.

        Scores and sums are not rounded to the model's 16 bits: large keys would change which token gets most.
        """
        first, prompts = self._first.layers[layer], self._prompts.layers[layer]
        keys_LHTD, values_LHTD = self._answers.layers[layer].whole  # a part of them would be copied by every product
        scores = [attention.product(q_LHRD, keys_LHTD.mT)]
        scores[0][..., self._answers.layers[layer].get_seq_length() :] = float("-inf")
        scores.append(self._by_prompt(q_LHRD, prompts.keys.mT, self._unseen_PS))
        if first.get_seq_length():
            scores.append(_by_all(q_LHRD, first.keys[0].mT))
        weights = torch.cat(scores, dim=-1).softmax(-1)
        parts = weights.split([part.shape[-1] for part in scores], dim=-1)
        gathered_LHRD = attention.product(parts[0], values_LHTD) + self._by_prompt(parts[1], prompts.values)
        if first.get_seq_length():
            gathered_LHRD = gathered_LHRD + _by_all(parts[2], first.values[0])
        return gathered_LHRD

    def _by_prompt(self, x_LHRK: Tensor, matrix_PHKN: Tensor, unseen_PN: Tensor | None = None) -> Tensor:
        """The product (L, H, R, N) of each line with its prompt's matrix, -inf where it is unseen."""
        _, heads, repeats, size = x_LHRK.shape
        prompts, placed = len(matrix_PHKN), x_LHRK
        if self._place_L is not None:
            placed = x_LHRK.new_zeros(prompts * self._most, heads, repeats, size)
            placed[self._place_L] = x_LHRK
        together = placed.view(prompts, self._most, heads, repeats, size).transpose(1, 2).flatten(2, 3)
        found = attention.product(together, matrix_PHKN).unflatten(2, (self._most, repeats))  # (P, H, M, R, N)
        if unseen_PN is not None:
            found = found.masked_fill(unseen_PN[:, None, None, None], float("-inf"))
        by_place: Tensor = found.transpose(1, 2).flatten(0, 1)
        return by_place if self._place_L is None else by_place[self._place_L]


def _ranks(prompt_L: Tensor, prompts: int) -> tuple[Tensor, Tensor]:
    """How many lines each prompt has (P,), and how many of these stand before each line (L,)."""
    lines_P = prompt_L.bincount(minlength=prompts)
    order_L = prompt_L.argsort(stable=True)
    before_P = lines_P.cumsum(0) - lines_P
    rank_L = torch.empty_like(order_L)
    rank_L[order_L] = torch.arange(len(order_L), device=order_L.device) - before_P[prompt_L[order_L]]
    return lines_P, rank_L


def _by_all(x_LHRK: Tensor, matrix_HKN: Tensor) -> Tensor:
    """The product (L, H, R, N) of all lines with one matrix for each head."""
    lines, _, repeats, _ = x_LHRK.shape
    found: Tensor = attention.product(x_LHRK.transpose(0, 1).flatten(1, 2), matrix_HKN).unflatten(1, (lines, repeats))
    return found.transpose(0, 1)


_current: ContextVar[SharedPrompts] = ContextVar("_current")


@contextmanager
def _attending(model: Network, batch: SharedPrompts) -> Iterator[None]:
    """Has the model's attention look at a batch's prompts, too."""
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
    """As transformers asks for it: queries (L, H R, 1, D), keys and values (L, H, T, D); gives (L, 1, H R, D)."""
    attention.expect_plain(kwargs)
    q_LHRD = query.squeeze(2).unflatten(1, (key.shape[1], -1))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    scaled_LHRD = q_LHRD.to(torch.promote_types(query.dtype, torch.float32)) * scale
    found_LHRD = _current.get().attend(layer, scaled_LHRD)  # of keys and values that its cache holds
    return found_LHRD.to(query.dtype).flatten(1, 2).unsqueeze(1), None


AttentionInterface.register(_NAME, _attention)
