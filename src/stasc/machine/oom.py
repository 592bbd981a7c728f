"""Memory that ran out."""

from __future__ import annotations

import torch
from accelerate.utils.memory import should_reduce_batch_size


def ran_out(error: BaseException | None) -> bool:
    """Whether an error says that a device, or the CPU, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and should_reduce_batch_size(error)
    )
