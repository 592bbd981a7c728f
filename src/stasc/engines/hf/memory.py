"""Decides how many samples fit into memory at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from stasc.engines.hf import prefill, shared
from stasc.machine import memory, processor
from stasc.models.model import Network
from stasc.tracking import fallback

_SHARE = 0.8  # share of free memory for the KV cache; a forward pass needs some more


@dataclass
class Limit:
    """The most samples at once; None until the first out-of-memory error."""

    rows: int | None = None

    def lower(self, rows: int) -> int:
        """Lowers the limit permanently, as freed memory may be fragmented. Returns the new limit."""
        processor.release_memory()
        self.rows = rows
        fallback.memory_short(rows)
        return rows

    def of(self, model: Network, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> int:
        """Returns how many of the prompts' samples fit into free memory at once, split into parts of similar size."""
        need = batch_bytes(model, prompts, max_new_tokens)
        free = _SHARE * free_bytes(model.device, math.ceil(need / _SHARE))
        parts = len(prompts) if need >= free * len(prompts) else max(1, math.ceil(need / free))
        if self.rows is not None:
            parts = max(parts, math.ceil(len(prompts) / self.rows))
        rows = math.ceil(len(prompts) / parts)
        if parts > 1:
            fallback.memory_short(rows)
        return rows


def batch_bytes(model: Network, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> int:
    """Estimates the size of KV cache and logits for one sample of `max_new_tokens` per prompt."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    samples = Counter(prompts)
    times = shared.copies(list(samples.values()))[0] if prefill.shares(model) else list(samples.values())
    tokens = sum(len(prompt) * n for prompt, n in zip(samples, times, strict=True)) + max_new_tokens * len(prompts)
    numbers = 2 * config.num_hidden_layers * heads * size * tokens + 2 * len(prompts) * config.vocab_size
    return int(model.dtype.itemsize * numbers)


def free_bytes(device: torch.device, enough: int) -> int:
    """Returns a device's free memory, including what torch caches; on a CPU at most what the control group allows.

    If that is less than `enough`, the C library first returns its free memory to the system.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if _available() < enough:
        processor.release_memory()
    return _available()


def _available() -> int:
    within = memory.cgroup_free_bytes()
    available = int(psutil.virtual_memory().available)
    return available if within is None else min(available, within)
