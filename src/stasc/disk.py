"""Is there room for what a run will write? Asked before it starts."""

from __future__ import annotations

import errno
import json
import re
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
    """Raises: OSError, as of a full disk, if the store's disk has less room than the run's weights need."""
    need = weights_bytes(root, tune, live, steps, keep_models) + _MARGIN
    free = fsx.free(root)
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"store.dir={root}: this run needs about {size_text(need)} there, and {size_text(free)} are free: "
            "make room (python -m stasc.store clean), or set store.dir to another disk"
            + (", or store.keep_models=last" if keep_models == "all" else ""),
        )


def weights_bytes(root: Path, tune: Full | Lora, live: LiveModel, steps: Sequence[Step], keep_models: str) -> int:
    """Bytes of all weights that a run will hold at once, more than it holds already."""
    todo = [step for step in steps if step.kind == "finetune" and not (root / "finetune" / step.key).exists()]
    held = len(todo) if keep_models == "all" else min(len(todo), 2)  # M_{n-1}, and M_n, which is being written
    return held * _model_bytes(Path(live.base), tune, live.training_dtype)


def _model_bytes(base: Path, tune: Full | Lora, dtype: torch.dtype) -> int:
    """Of the weights or the adapter that one fine-tuning writes."""
    shapes = {name: shape for file in base.glob("*.safetensors") for name, shape in _shapes(file)}
    if isinstance(tune, Lora):
        return sum(4 * tune.rank * sum(shape) for name, shape in shapes.items() if _adapted(tune, name, shape))
    return sum(dtype.itemsize * prod(shape) for shape in shapes.values())


def _adapted(tune: Lora, name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor gets an adapter. peft's all-linear means all matrices but those of words and positions."""
    module = name.removesuffix(".weight")
    if tune.target_modules == ["all-linear"]:
        return len(shape) == 2 and not re.search("embed|lm_head|wte|wpe", module)
    return any(f".{module}".endswith(f".{target}") for target in tune.target_modules)


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """The tensors in a safetensors file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return ((name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
