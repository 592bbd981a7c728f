"""How many answers are sampled at once: as many as memory has room for, and fewer once it ran out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stasc.model import Network

log = logging.getLogger(__name__)

_SHARE = 0.8  # of the free memory; the rest is for what a forward pass needs


@dataclass
class Limit:
    """The most rows at once. `told` hears of every number that is lower than the one before."""

    told: Callable[[int], None] = lambda rows: None
    rows: int | None = None

    def lower(self, rows: int) -> int:
        """Notes that no more fit."""
        if self.rows is None or rows < self.rows:
            self.rows = rows
            log.warning("memory is short: sampling goes on with %d answers at once", rows)
            self.told(rows)
        return self.rows

    def of(self, model: Network, prompts: Sequence[tuple[int, ...]], room: int) -> int:
        """How many of these rows to sample at once, each a prompt and an answer of so many tokens.

        Parts are of like size. That prompts are held once for all their answers is left out of account.
        """
        most = int(_SHARE * free_bytes(model.device)) // row_bytes(model, max(map(len, prompts)) + room)
        if most < len(prompts):
            self.lower(max(1, most))
        if self.rows is None or self.rows >= len(prompts):
            return len(prompts)
        return math.ceil(len(prompts) / math.ceil(len(prompts) / self.rows))


def row_bytes(model: Network, tokens: int) -> int:
    """What keys, values and logits of a row take."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * size * tokens
    return int(model.dtype.itemsize * (cached + 2 * config.vocab_size))


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on a device, what torch holds for later included."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    import psutil

    return int(psutil.virtual_memory().available)
