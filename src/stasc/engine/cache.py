"""Keys and values of a batch that is being answered, with room for what is to come.

transformers' own dynamic cache copies all of them at every token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RoomyLayer(DynamicLayer):
    """One layer's, of which `keys` and `values` (B, H, S, D) are the part in use."""

    room = 0  # tokens that are yet to come, beyond those that are being added
    _whole: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, after = self.get_seq_length(), self.get_seq_length() + key_states.shape[-2]
        whole = self._whole
        if whole is None or whole[0].shape[-2] < after:
            shape = (*key_states.shape[:2], after + self.room, key_states.shape[-1])
            whole = key_states.new_empty(shape), value_states.new_empty((*shape[:3], value_states.shape[-1]))
            if before:
                assert self.keys is not None and self.values is not None
                for part, had in zip(whole, (self.keys, self.values), strict=True):
                    part[:, :, :before] = had
            self._whole = whole
        for part, new in zip(whole, (key_states, value_states), strict=True):
            part[:, :, before:after] = new
        self.keys, self.values = (part[:, :, :after] for part in whole)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        length, whole = self.get_seq_length(), self._whole
        if whole is None:
            return super().batch_select_indices(indices)
        self._whole = whole = whole[0][indices], whole[1][indices]
        self.keys, self.values = (part[:, :, :length] for part in whole)
        return None

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._whole = None


def make(config: PreTrainedConfig, longest: int) -> Cache:
    """A cache for this model, and rows of at most `longest` tokens.

    It is transformers' own where a layer attends otherwise than to all tokens, as one does whose window is shorter.
    """
    cache = DynamicCache(config=config)
    if all(_sees_all(layer, longest) for layer in cache.layers):
        cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache


def expect(cache: Cache, tokens: int) -> None:
    """Makes room for so many tokens when the next are added."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.room = tokens


def _sees_all(layer: object, longest: int) -> bool:
    if type(layer) is DynamicSlidingWindowLayer:
        return layer.sliding_window >= longest
    return type(layer) is DynamicLayer
