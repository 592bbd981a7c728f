"""Keys and values of a batch that is being answered, with room for what is to come.

transformers' own dynamic cache copies all of them at every token.

Shapes: B rows, H heads, S tokens in use, D size of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    pass

_MORE_ROWS = 1.25  # so that few more are no copy of all


class RoomyLayer(DynamicLayer):
    """One layer's, of which `keys` and `values` (B, H, S, D) are the part in use.

    Args:
        room: how many tokens place is made for beyond those that are put in.
        most_rows: how many rows there can be. Place is made for some more than there are, up to that.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, room: int = 0, most_rows: int = 0) -> None:
        super().__init__()
        self._room, self._most_rows = room, most_rows
        self._all: tuple[Tensor, Tensor] | None = None

    @property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Keys and values with the room that is left, which is all zeros."""
        assert self._all is not None
        return self._all[0][: len(self.keys)], self._all[1][: len(self.keys)]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, new = self.get_seq_length(), key_states.shape[2]
        if self._all is None or self._all[0].shape[2] < before + new:
            had = (self.keys, self.values)
            self.allocate(key_states, value_states, len(key_states), before + new)
            if before:
                self._put(slice(0, len(key_states)), slice(0, before), had)
        self._put(slice(0, len(key_states)), slice(before, before + new), (key_states, value_states))
        self._use(len(key_states), before + new)
        return self.keys, self.values

    def allocate(self, keys: Tensor, values: Tensor, rows: int, length: int) -> None:
        """Makes place for so many rows and tokens of the kind of `keys` and `values`; it is all zeros."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._make(keys, values, rows, length + self._room)
        self._use(rows, length)

    def take(self, rows: Tensor, source: RoomyLayer, columns: Tensor) -> None:
        """Has the given rows begin with the tokens `columns` (len(rows), S) of another layer's single row."""
        keys, values = (part[0][:, columns].transpose(0, 1) for part in (source.keys, source.values))
        self._put(rows, slice(0, columns.shape[1]), (keys, values))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._all is not None:
            length = self.get_seq_length()
            self._all = (self._all[0][indices], self._all[1][indices])
            self._use(len(indices), length)

    def keep(self, indices: Tensor, moved: Tensor, movers: Tensor) -> None:
        """Goes on with the rows `indices`, of which `moved` are not where they were, but at `movers`."""
        if self._all is None:
            return
        length = self.get_seq_length()
        if len(indices) > len(self._all[0]):
            had = (self.keys[indices], self.values[indices])
            self._make(*had, len(indices), self._all[0].shape[2])
            self._put(slice(0, len(indices)), slice(0, length), had)
        else:
            for part in self._all:
                part[moved, :, :length] = part[movers, :, :length]
        self._use(len(indices), length)

    def _make(self, keys: Tensor, values: Tensor, rows: int, tokens: int) -> None:
        shape = (max(rows, min(self._most_rows, int(rows * _MORE_ROWS))), keys.shape[1], tokens)
        self._all = (keys.new_zeros(*shape, keys.shape[3]), values.new_zeros(*shape, values.shape[3]))

    def _put(self, rows: slice | Tensor, tokens: slice, parts: tuple[Tensor, Tensor]) -> None:
        assert self._all is not None
        for every, part in zip(self._all, parts, strict=True):
            every[rows, :, tokens] = part

    def _use(self, rows: int, length: int) -> None:
        assert self._all is not None
        self.keys, self.values = (part[:rows, :, :length] for part in self._all)


class RoomyCache(Cache):
    """Of a model that is a stack of such layers; see `RoomyLayer`."""

    layers: list[RoomyLayer]  # type: ignore[assignment]

    def __init__(self, layers: int, room: int = 0, most_rows: int = 0) -> None:
        super().__init__(layers=[RoomyLayer(room, most_rows) for _ in range(layers)])

    def copy(self) -> RoomyCache:
        """One that goes on by itself."""
        copied = RoomyCache(len(self.layers))
        for layer, had in zip(copied.layers, self.layers, strict=True):
            if had.get_seq_length():
                layer.update(had.keys, had.values)
        return copied

    def allocate(self, like: RoomyCache, rows: int, length: int) -> None:
        """Makes place for so many rows and tokens of the kind of those in another cache."""
        for layer, other in zip(self.layers, like.layers, strict=True):
            layer.allocate(other.keys, other.values, rows, length)

    def keep(self, indices: Tensor) -> None:
        """Goes on with these rows. Those that stay in their places are not copied while all have place."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        movers = indices[moved]
        for layer in self.layers:
            layer.keep(indices, moved, movers)

    def take(self, rows: Tensor, source: RoomyCache, columns: Tensor) -> None:
        """Has the given rows begin with the tokens `columns` (len(rows), S) of another cache's single row."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.take(rows, other, columns)


def staying(stays_B: Tensor) -> Tensor:
    """The rows that stay, int64, in an order that leaves most in their places: the last fill the places of others."""
    rows = stays_B.nonzero().squeeze(1)
    order = torch.arange(len(rows), device=rows.device)
    order[~stays_B[: len(rows)]] = rows[rows >= len(rows)]
    return order
