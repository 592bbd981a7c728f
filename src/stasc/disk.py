"""Is there room for what a run will write? Asked before it starts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch

from stasc import fsx
from stasc.derivation import Step
from stasc.finetune import Full, Lora
from stasc.model import LiveModel
from stasc.units import size_text

_MARGIN = 50 * 2**20  # bytes, for answers, journals and logs


def check(root: Path, tune: Full | Lora, live: LiveModel, steps: Sequence[Step], keep_models: str) -> None:
    """Raises: OSError if the store's disk has less room than the run's weights need."""
    todo = [step for step in steps if step.kind == "finetune" and not (root / "finetune" / step.key).exists()]
    held = len(todo) if keep_models == "all" else min(len(todo), 3)  # M_{n-1}, M_n, and one that is being written
    need = held * _model_bytes(Path(live.base), tune, live.training_dtype) + _MARGIN
    free = fsx.free(root)
    if need > free:
        raise OSError(
            f"store.dir={root}: this run needs about {size_text(need)} there, and {size_text(free)} are free: "
            "make room (python -m stasc.store clean), or set store.dir to another disk"
            + (", or store.keep_models=last" if keep_models == "all" else "")
        )


def _model_bytes(base: Path, tune: Full | Lora, dtype: torch.dtype) -> int:
    """Bytes of the weights or of the adapter that one fine-tuning writes."""
    shapes = [shape for file in base.glob("*.safetensors") for shape in _shapes(file)]
    if isinstance(tune, Lora):
        return sum(4 * tune.rank * sum(shape) for shape in shapes if len(shape) == 2)
    return sum(dtype.itemsize * prod(shape) for shape in shapes)


def _shapes(file: Path) -> Iterator[list[int]]:
    """Of all tensors in a safetensors file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return (tensor["shape"] for name, tensor in header.items() if name != "__metadata__")
