"""Keys and values of a batch that is being answered, with room for what is to come.

transformers' own dynamic cache copies all of them at every token.

Shapes: B rows, H heads, S tokens in use, D size of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RoomyLayer(DynamicLayer):
    """One layer's, of which `keys` and `values` (B, H, S, D) are the part in use."""

    keys: Tensor
    values: Tensor

    def __init__(self, room: int = 0) -> None:
        super().__init__()
        self._room = room
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values with the room that is left, which is all zeros."""
        assert self._whole is not None
        return self._whole

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, new = self.get_seq_length(), key_states.shape[2]
        if self._whole is None or self._whole[0].shape[2] < before + new:
            had = (self.keys, self.values)
            self.allocate(key_states, value_states, len(key_states), before + new)
            if before:
                self._put(slice(None), slice(0, before), had)
        self._put(slice(None), slice(before, before + new), (key_states, value_states))
        self._use(before + new)
        return self.keys, self.values

    def allocate(self, keys: Tensor, values: Tensor, rows: int, length: int) -> None:
        """Makes place for so many rows and tokens of the kind of `keys` and `values`; it is all zeros."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        whole = [like.new_zeros(rows, like.shape[1], length + self._room, like.shape[3]) for like in (keys, values)]
        self._whole = (whole[0], whole[1])
        self._use(length)

    def take(self, rows: Tensor, source: RoomyLayer, source_rows: Tensor, columns: Tensor) -> None:
        """Has the given rows begin with the tokens `columns` (len(rows), S) of rows of another layer."""
        some = [part[source_rows.unsqueeze(1), :, columns].transpose(1, 2) for part in (source.keys, source.values)]
        self._put(rows, slice(0, columns.shape[1]), (some[0], some[1]))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._whole is not None:
            length = self.get_seq_length()
            self._whole = (self._whole[0][indices], self._whole[1][indices])
            self._use(length)

    def keep(self, rows: int, holes: Tensor, movers: Tensor) -> None:
        """Goes on with so many rows, the first but for the holes, which others are moved into."""
        if self._whole is not None:
            length = self.get_seq_length()
            for whole in self._whole:
                whole[holes] = whole[movers]
            self._whole = (self._whole[0][:rows], self._whole[1][:rows])
            self._use(length)

    def _put(self, rows: slice | Tensor, tokens: slice, parts: tuple[Tensor, Tensor]) -> None:
        for whole, part in zip(self.whole, parts, strict=True):
            whole[rows, :, tokens] = part

    def _use(self, length: int) -> None:
        self.keys, self.values = (whole[:, :, :length] for whole in self.whole)


class RoomyCache(Cache):
    """Of a model that is a stack of such layers, with room for so many tokens at once beyond those that are put in."""

    layers: list[RoomyLayer]  # type: ignore[assignment]

    def __init__(self, layers: int, room: int = 0) -> None:
        super().__init__(layers=[RoomyLayer(room) for _ in range(layers)])

    def copies(self, rows: int) -> RoomyCache:
        """The cache of a single row, for so many that begin alike."""
        copied = RoomyCache(len(self.layers))
        for layer, had in zip(copied.layers, self.layers, strict=True):
            if had.get_seq_length():
                layer.update(*(part.expand(rows, -1, -1, -1) for part in (had.keys, had.values)))
        return copied

    def allocate(self, like: RoomyCache, rows: int, length: int) -> None:
        """Makes place for so many rows and tokens of the kind of those in another cache."""
        for layer, other in zip(self.layers, like.layers, strict=True):
            layer.allocate(other.keys, other.values, rows, length)

    def keep(self, indices: Tensor) -> None:
        """Goes on with these rows alone, without a copy of those that stay in their places."""
        holes = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for layer in self.layers:
            layer.keep(len(indices), holes, indices[holes])

    def take(self, rows: Tensor, source: RoomyCache, source_rows: Tensor, columns: Tensor) -> None:
        """Has the given rows begin with the tokens `columns` (len(rows), S) of rows of another cache."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.take(rows, other, source_rows, columns)


def sees_all(config: PreTrainedConfig, longest: int) -> bool:
    """Whether every layer of a model attends to all tokens of a row of so many; one with a shorter window does not."""
    return all(
        layer.sliding_window >= longest if type(layer) is DynamicSlidingWindowLayer else type(layer) is DynamicLayer
        for layer in DynamicCache(config=config).layers
    )


def staying(stays_B: Tensor) -> Tensor:
    """The rows that stay, int64, in an order that leaves most in their places: the last fill the places of others."""
    rows = stays_B.nonzero().squeeze(1)
    order = torch.arange(len(rows), device=rows.device)
    order[~stays_B[: len(rows)]] = rows[rows >= len(rows)]
    return order
