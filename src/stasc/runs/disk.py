"""Checks that the disk can hold the weights of a run, before it starts."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from stasc.machine import durable
from stasc.models.live import LiveModel
from stasc.store import leases
from stasc.store.leases import Lease
from stasc.training.methods import Method
from stasc.units import size_text

_MARGIN = 50 * 2**20  # bytes for answers, journals and logs


def check(root: Path, tune: Method, live: LiveModel, lease: Lease) -> None:
    """Checks the free space in the store and in the run's folder. Raises: OSError, as of a full disk."""
    final = model_bytes(Path(live.base), tune, live.training_dtype)  # the copy of M_N in the run's folder
    folder = Path(lease.folder)
    elsewhere = folder.stat().st_dev != root.stat().st_dev
    need = weights_bytes(root, tune, live, lease) + (0 if elsewhere else final) + _MARGIN
    advice = "free some space (python -m stasc.store clean), or set store.dir to another disk"
    _check_free(f"store.dir={root}", root, need, advice + ", or store.keep_models=last" * (lease.keep_models == "all"))
    if elsewhere:
        advice = "free some space, or write to another disk (hydra.run.dir, hydra.sweep.dir)"
        _check_free(str(folder), folder, final + _MARGIN, advice)


def _check_free(name: str, path: Path, need: int, advice: str) -> None:
    free = durable.free(path)
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"{name}: this run needs about {size_text(need)} there, and {size_text(free)} are free: {advice}",
        )


def weights_bytes(root: Path, tune: Method, live: LiveModel, lease: Lease) -> int:
    """Returns the bytes of weights that a run will add to the store, at its peak."""
    made = [step.key for step in lease.steps if step.kind == "finetune"]
    new = [key for key in made if not (root / "finetune" / key).exists()]
    dropped = {*leases.to_read(root, lease.steps, lease.final)}.intersection(made).difference(new)
    held = len(new) if lease.keep_models == "all" else min(len(new), 2)  # M_{n-1}, and M_n, which is being written
    held += sum(not (root / "model" / key).exists() for key in dropped)
    return held * model_bytes(Path(live.base), tune, live.training_dtype)


def model_bytes(base: Path, tune: Method, dtype: torch.dtype) -> int:
    """Returns the size of the weights or the adapter that one fine-tuning writes."""
    shapes = {name: shape for file in base.glob("*.safetensors") for name, shape in _shapes(file)}
    return tune.saved_bytes(shapes, dtype)


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Yields the name and shape of each tensor in a safetensors file, from its header."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return ((name, tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
