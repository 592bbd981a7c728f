"""A batch that is being answered, where keys and values of prompts are held once for all answers to them.

A prompt that is asked far more often than the others is held more than once, as all are given as much place.

What all prompts begin with, the rest of each prompt, and each answer are three parts of what a token looks at. The
scores of all three go into one softmax, so that it is the attention of a row that holds all of it.

Shapes: B rows (one per sample), P prompts, M rows of a prompt at most, F tokens that all prompts begin with, S tokens
of a prompt behind these, T tokens of answers with the room for more, H heads of keys, R heads of queries for each of
these, D size of a head, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from stasc import attention
from stasc.engine.cache import RoomyCache, staying

if TYPE_CHECKING:
    from stasc.model import Network

_NAME = "stasc_shared_prompts"  # of this attention, in transformers' register
_ROOM = 32  # tokens of answers that place is made for at once
_COPY = 3  # to read a prompt's keys and values costs as much as so many rows


def copies(rows_P: Sequence[int]) -> tuple[list[int], int]:
    """How often to hold each prompt, which has so many rows, and for how many rows each time: what costs least."""

    def times(most: int) -> list[int]:
        return [-(-rows // most) for rows in rows_P]

    most = min(sorted(set(rows_P)), key=lambda most: sum(times(most)) * (most + _COPY))
    return times(most), most


class SharedPrompts:
    """The rows of a batch.

    Args:
        first: of one row, what all prompts begin with; of no tokens if that is nothing.
        prompts: of P rows, the rest of each prompt.
        lengths_P: tokens of these, int64; what stands behind them is padding.
        prompt_B: the prompt of each row, int64; every prompt has one.
        room: how many tokens an answer has at most.
    """

    def __init__(self, first: RoomyCache, prompts: RoomyCache, lengths_P: Tensor, prompt_B: Tensor, room: int) -> None:
        self._first, self._prompts, self._lengths_P, self._prompt_B = first, prompts, lengths_P, prompt_B
        self._answers = RoomyCache(len(prompts.layers), min(room, _ROOM))
        self._copy()
        self._place()

    def forward(self, model: Network, ids_B: Tensor, **more: bool) -> Any:
        """What the model gives for one more token of each row."""
        positions_B = self._first.get_seq_length() + self._lengths_P[self._prompt_B] + self._answers.get_seq_length()
        with _attending(model, self):
            return model(
                input_ids=ids_B.unsqueeze(1),
                position_ids=positions_B.unsqueeze(1),
                past_key_values=self._answers,
                use_cache=True,
                **more,
            )

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows alone."""
        self._answers.keep(rows)
        self._prompt_B = self._prompt_B[rows]
        asked_P = torch.zeros_like(self._lengths_P, dtype=torch.bool)
        asked_P[self._prompt_B] = True
        kept = staying(asked_P)
        if len(kept) < len(asked_P):
            self._prompts.keep(kept)
            new_P = torch.empty_like(self._lengths_P)
            new_P[kept] = torch.arange(len(kept), device=kept.device)
            self._lengths_P, self._prompt_B = self._lengths_P[kept], new_P[self._prompt_B]
        self._place()

    def _copy(self) -> None:
        """Holds a prompt more than once where its rows are many. Copies are prompts from then on."""
        rows_P, rank_B = self._ranks()
        times, most = copies(rows_P.tolist())
        times_P = torch.tensor(times, device=rows_P.device)
        if most < rows_P.max():
            self._prompt_B = (times_P.cumsum(0) - times_P)[self._prompt_B] + rank_B // most
            copied = torch.arange(len(times), device=rows_P.device).repeat_interleave(times_P)
            self._prompts.batch_select_indices(copied)
            self._lengths_P = self._lengths_P[copied]

    def _place(self) -> None:
        """Gives each row one of the M places of its prompt."""
        rows_P, rank_B = self._ranks()
        self._most = int(rows_P.max())
        place_B = self._prompt_B * self._most + rank_B
        full = len(place_B) == len(rows_P) * self._most
        in_order = full and bool((place_B == torch.arange(len(place_B), device=place_B.device)).all())
        self._place_B = None if in_order else place_B
        width = self._prompts.get_seq_length()
        self._unseen_PS = torch.arange(width, device=rank_B.device) >= self._lengths_P.unsqueeze(1)

    def _ranks(self) -> tuple[Tensor, Tensor]:
        """How many rows each prompt has, and how many of these stand before each row."""
        rows_P = self._prompt_B.bincount(minlength=len(self._lengths_P))
        order_B = self._prompt_B.argsort(stable=True)
        before_P = rows_P.cumsum(0) - rows_P
        rank_B = torch.empty_like(order_B)
        rank_B[order_B] = torch.arange(len(order_B), device=order_B.device) - before_P[self._prompt_B[order_B]]
        return rows_P, rank_B

    def attend(self, layer: int, q_BHRD: Tensor) -> Tensor:
        """What the newest token of each row gathers (B, H, R, D). The queries are scaled."""
        first, prompts = self._first.layers[layer], self._prompts.layers[layer]
        keys_BHTD, values_BHTD = self._answers.layers[layer].whole  # a part of them would be copied by every product
        scores = [q_BHRD @ keys_BHTD.mT]
        scores[0][..., self._answers.layers[layer].get_seq_length() :] = float("-inf")
        scores.append(self._by_prompt(q_BHRD, prompts.keys.mT, self._unseen_PS))
        if first.get_seq_length():
            scores.append(_by_all(q_BHRD, first.keys[0].mT))
        wide = torch.promote_types(q_BHRD.dtype, torch.float32)
        weights = torch.cat(scores, dim=-1).softmax(-1, dtype=wide).to(q_BHRD.dtype)
        parts = weights.split([part.shape[-1] for part in scores], dim=-1)
        gathered_BHRD: Tensor = parts[0] @ values_BHTD + self._by_prompt(parts[1], prompts.values)
        if first.get_seq_length():
            gathered_BHRD = gathered_BHRD + _by_all(parts[2], first.values[0])
        return gathered_BHRD

    def _by_prompt(self, x_BHRK: Tensor, matrix_PHKN: Tensor, unseen_PN: Tensor | None = None) -> Tensor:
        """The product (B, H, R, N) of each row with its prompt's matrix, -inf where it is unseen."""
        _, heads, repeats, size = x_BHRK.shape
        prompts, placed = len(matrix_PHKN), x_BHRK
        if self._place_B is not None:
            placed = x_BHRK.new_zeros(prompts * self._most, heads, repeats, size)
            placed[self._place_B] = x_BHRK
        together = placed.view(prompts, self._most, heads, repeats, size).transpose(1, 2).flatten(2, 3)
        found = (together @ matrix_PHKN).unflatten(2, (self._most, repeats))  # (P, H, M, R, N)
        if unseen_PN is not None:
            found = found.masked_fill(unseen_PN[:, None, None, None], float("-inf"))
        by_place: Tensor = found.transpose(1, 2).flatten(0, 1)
        return by_place if self._place_B is None else by_place[self._place_B]


def _by_all(x_BHRK: Tensor, matrix_HKN: Tensor) -> Tensor:
    """The product (B, H, R, N) of all rows with one matrix for each head."""
    rows, _, repeats, _ = x_BHRK.shape
    found: Tensor = (x_BHRK.transpose(0, 1).flatten(1, 2) @ matrix_HKN).unflatten(1, (rows, repeats))
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
    """As transformers asks for it: queries (B, H R, 1, D), keys and values (B, H, T, D); gives (B, 1, H R, D)."""
    attention.expect_plain(kwargs)
    q_BHRD = query.squeeze(2).unflatten(1, (key.shape[1], -1))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    found_BHRD = _current.get().attend(layer, q_BHRD * scale)  # of keys and values that its cache holds
    return found_BHRD.flatten(1, 2).unsqueeze(1), None


AttentionInterface.register(_NAME, _attention)
