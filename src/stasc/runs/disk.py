"""Checks that the disk can hold the weights of a run, before it starts."""

from __future__ import annotations

import errno
from pathlib import Path

import torch
from safetensors import safe_open

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
    if need > (free := durable.free(path)):
        needs = f"this run needs about {size_text(need)} there, and {size_text(free)} are free"
        raise OSError(errno.ENOSPC, f"{name}: {needs}: {advice}")


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
    shapes: dict[str, list[int]] = {}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return tune.saved_bytes(shapes, dtype)
