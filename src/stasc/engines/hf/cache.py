"""A KV cache with preallocated capacity: transformers' own dynamic cache copies all keys and values at every token.

Shapes: B rows, H heads, T tokens in use, D size of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_GROWTH = 1.25  # rows are allocated in excess, so that few more need no copy


class PreallocatedLayer(DynamicLayer):
    """The KV cache of one layer. `keys` and `values` (B, H, T, D) are views of the part in use.

    Args:
        spare: tokens of capacity beyond those put in, added at each allocation.
        max_rows: the most rows there will be; allocations in excess stop there.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, spare: int = 0, max_rows: int = 0) -> None:
        super().__init__()
        self._spare, self._max_rows = spare, max_rows
        self._buffers: tuple[Tensor, Tensor] | None = None

    @property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Keys and values of all rows in use, up to the capacity in tokens; unused slots are zero."""
        assert self._buffers is not None
        return self._buffers[0][: len(self.keys)], self._buffers[1][: len(self.keys)]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        before, new = self.get_seq_length(), key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < before + new:
            cached = (self.keys, self.values)
            self.allocate(key_states, value_states, len(key_states), before + new)
            if before:
                self._write(slice(0, len(key_states)), slice(0, before), cached)
        self._write(slice(0, len(key_states)), slice(before, before + new), (key_states, value_states))
        self._use(len(key_states), before + new)
        return self.keys, self.values

    def allocate(self, keys: Tensor, values: Tensor, rows: int, length: int) -> None:
        """Puts zeros for `rows` rows of `length` tokens in use, with heads, dtype and device of `keys` and `values`."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self._reserve(keys, values, rows, length + self._spare)
        self._use(rows, length)

    def copy_from(self, source: PreallocatedLayer, rows: Tensor, columns: Tensor) -> None:
        """Copies tokens `columns` (len(rows), T) of the source's only row to the beginning of `rows`."""
        keys, values = (part[0][:, columns].transpose(0, 1) for part in (source.keys, source.values))
        self._write(rows, slice(0, columns.shape[1]), (keys, values))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self._buffers is not None:
            length = self.get_seq_length()
            self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
            self._use(len(indices), length)

    def select(self, indices: Tensor, moved: Tensor, origins: Tensor) -> None:
        """Keeps the rows `indices`: those at positions `moved` are copied from `origins`, the others stay in place."""
        if self._buffers is None:
            return
        length = self.get_seq_length()
        if len(indices) > len(self._buffers[0]):
            cached = (self.keys[indices], self.values[indices])
            self._reserve(*cached, len(indices), self._buffers[0].shape[2])
            self._write(slice(0, len(indices)), slice(0, length), cached)
        else:
            for buffer in self._buffers:
                buffer[moved, :, :length] = buffer[origins, :, :length]
        self._use(len(indices), length)

    def _reserve(self, keys: Tensor, values: Tensor, rows: int, tokens: int) -> None:
        shape = (max(rows, min(self._max_rows, int(rows * _GROWTH))), keys.shape[1], tokens)
        self._buffers = (keys.new_zeros(*shape, keys.shape[3]), values.new_zeros(*shape, values.shape[3]))

    def _write(self, rows: slice | Tensor, tokens: slice, parts: tuple[Tensor, Tensor]) -> None:
        assert self._buffers is not None
        for buffer, part in zip(self._buffers, parts, strict=True):
            buffer[rows, :, tokens] = part

    def _use(self, rows: int, length: int) -> None:
        assert self._buffers is not None
        self.keys, self.values = (buffer[:rows, :, :length] for buffer in self._buffers)


class PreallocatedCache(Cache):
    """The KV cache of a model whose layers all attend to the whole sequence; see `PreallocatedLayer`."""

    layers: list[PreallocatedLayer]  # type: ignore[assignment]

    def __init__(self, layers: int, spare: int = 0, max_rows: int = 0) -> None:
        super().__init__(layers=[PreallocatedLayer(spare, max_rows) for _ in range(layers)])

    def copy(self) -> PreallocatedCache:
        """Returns an independent copy without spare capacity."""
        copied = PreallocatedCache(len(self.layers))
        for layer, own in zip(copied.layers, self.layers, strict=True):
            if own.get_seq_length():
                layer.update(own.keys, own.values)
        return copied

    def allocate(self, like: PreallocatedCache, rows: int, length: int) -> None:
        """Puts zeros for `rows` rows of `length` tokens in use, shaped like another cache."""
        for layer, other in zip(self.layers, like.layers, strict=True):
            layer.allocate(other.keys, other.values, rows, length)

    def select(self, indices: Tensor) -> None:
        """Keeps these rows. A row that stays at its position is not copied unless capacity must grow."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        origins = indices[moved]
        for layer in self.layers:
            layer.select(indices, moved, origins)

    def copy_from(self, source: PreallocatedCache, rows: Tensor, columns: Tensor) -> None:
        """Copies tokens `columns` (len(rows), T) of the source's only row to the beginning of `rows`."""
        for layer, other in zip(self.layers, source.layers, strict=True):
            layer.copy_from(other, rows, columns)


def compact(keep_B: Tensor) -> Tensor:
    """Returns the kept rows, int64, in the order that moves the fewest: the last ones fill the gaps of dropped rows."""
    rows = keep_B.nonzero().squeeze(1)
    order = torch.arange(len(rows), device=rows.device)
    order[~keep_B[: len(rows)]] = rows[rows >= len(rows)]
    return order
