"""Groups sequences that may share a batch: some models compute a sequence differently beside a longer one.

LongRoPE (Ding et al., arXiv 2402.13753) rotates all positions by one of two sets of factors. transformers chooses the
set by the longest sequence of a forward pass. A batch with sequences on both sides of the switch therefore changes some
of them, and a KV cache holds keys of the wrong set once its sequence grows past the switch. A few models cannot be
padded: see `probe.pads`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stasc.models.model import Network


@dataclass(frozen=True)
class Lengths:
    """The rule by which lengths of sequences may share a batch.

    Args:
        switches: lengths after which positions are rotated by other factors, ascending.
        apart: whether only sequences of equal length may share a batch.
    """

    switches: tuple[int, ...] = ()
    apart: bool = False

    def kind(self, length: int) -> int:
        """Returns the class of a length: sequences of one class may share a batch."""
        return length if self.apart else bisect_left(self.switches, length)

    def capacity(self, length: int, most: int) -> int:
        """Returns how many of `most` tokens can follow `length` tokens before the sequence must be recomputed."""
        switch = next((switch for switch in self.switches if switch >= length), None)
        return most if switch is None else min(most, switch - length + 1)

    def groups(self, lengths: Iterable[int]) -> list[list[int]]:
        """Returns the indices of sequences of these lengths, grouped by shared batch."""
        return grouped([self.kind(length) for length in lengths])


def grouped(keys: Sequence[Hashable]) -> list[list[int]]:
    """Returns the indices of the keys, grouped by equal key, in order of first occurrence."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def switches(network: Network) -> tuple[int, ...]:
    """Returns the lengths at which a network's LongRoPE factors change.

    Dynamic NTK changes its factors only beyond the context, which `check_context` rules out.
    """
    rope = getattr(network.config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, Mapping)]
    found = {kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"}
    return tuple(sorted(found))


@contextmanager
def beyond(network: Network, length: int) -> Iterator[None]:
    """Makes every forward pass rotate positions as for sequences of at least `length` tokens.

    A prefix computed by itself then equals the prefix within a longer sequence.
    """
    passed = [switch for switch in switches(network) if switch < length]
    if not passed:
        yield
        return
    far = max(passed)  # position of the first token after the last switch

    def longer(position_ids: Tensor) -> Tensor:
        import torch

        return torch.cat([position_ids, torch.full_like(position_ids[..., :1], far)], dim=-1)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": longer(kwargs["position_ids"])}
        return (args[0], longer(args[1]), *args[2:]), kwargs

    def after(module: nn.Module, args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part[..., :-1, :] for part in output)

    with ExitStack() as hooks:
        for module in network.modules():
            if "longrope" in _rope_types(module):
                hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                hooks.enter_context(module.register_forward_hook(after))
        yield


def _rope_types(module: nn.Module) -> tuple[object, ...]:
    found = getattr(module, "rope_type", None)
    return tuple(found.values()) if isinstance(found, Mapping) else (found,)
