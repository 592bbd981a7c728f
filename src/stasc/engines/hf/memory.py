"""How many answers are sampled at once: as many as memory has room for, and fewer once it ran out."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stasc.engines.hf import prefill, shared
from stasc.machine import memory, processor

if TYPE_CHECKING:
    from stasc.models.model import Network

log = logging.getLogger(__name__)

_SHARE = 0.8  # of the free memory; the rest is for what a forward pass needs


@dataclass
class Limit:
    """The most rows at once, after memory ran out. `told` hears of every number lower than those before."""

    told: Callable[[int], None] = lambda rows: None
    rows: int | None = None
    _told: int | None = None

    def lower(self, rows: int) -> int:
        """Notes for good that no more fit. What was freed since may be in other pieces than are needed next."""
        processor.give_back()
        self.rows = rows
        self._tell(rows)
        return rows

    def of(self, model: Network, prompts: Sequence[tuple[int, ...]], room: int) -> int:
        """How many of these rows to sample at once, each a prompt and an answer of so many tokens.

        Parts are of like size, and as many as what is free now asks for.
        """
        need = batch_bytes(model, prompts, room)
        free = _SHARE * free_bytes(model.device, math.ceil(need / _SHARE))
        parts = len(prompts) if need >= free * len(prompts) else max(1, math.ceil(need / free))
        if self.rows is not None:
            parts = max(parts, math.ceil(len(prompts) / self.rows))
        rows = math.ceil(len(prompts) / parts)
        if parts > 1:
            self._tell(rows)
        return rows

    def _tell(self, rows: int) -> None:
        if self._told is None or rows < self._told:
            self._told = rows
            log.warning("memory is short: sampling goes on with %d answers at once", rows)
            self.told(rows)


def batch_bytes(model: Network, prompts: Sequence[tuple[int, ...]], room: int) -> int:
    """About what keys, values and logits of rows take at most, each a prompt and an answer of so many tokens."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rows = Counter(prompts)
    times = shared.copies(list(rows.values()))[0] if prefill.shares(model) else list(rows.values())
    held = sum(len(prompt) * n for prompt, n in zip(rows, times, strict=True)) + room * len(prompts)
    numbers = 2 * config.num_hidden_layers * heads * size * held + 2 * len(prompts) * config.vocab_size
    return int(model.dtype.itemsize * numbers)


def free_bytes(device: torch.device, enough: int) -> int:
    """Memory that can be had on a device: what torch holds for later included, and, if that is not `enough`, what the
    C library holds, which then gives it back. On a CPU, it is no more than the process's control group allows."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if _available() < enough:
        processor.give_back()
    return _available()


def _available() -> int:
    import psutil

    within = memory.cgroup_free_bytes()
    available = int(psutil.virtual_memory().available)
    return available if within is None else min(available, within)
