"""Sets up torch and the C library for computing on a CPU, for the whole process.

This changes speed and rounding, so it can change a sampled token.
"""

from __future__ import annotations

import ctypes
import functools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_KERNELS = "32"  # a forward pass needs about a dozen; oneDNN's default is 1024
_ROUNDING = 1e-5  # relative error of a float32 product against float64; bfloat16 factors give more than 1e-3
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # as in malloc.h


def prepare(device: torch.device) -> None:
    """Sets up this process to compute on a device."""
    if device.type == "cpu":
        limit_kernel_cache()
        keep_memory()
    multiply_by_onednn(device.type == "cpu")


def limit_kernel_cache() -> None:
    """Limits oneDNN's kernel cache, unless the environment does already. Call it before the first product.

    oneDNN compiles a kernel of about 0.4 MB for each batch size, and the batch size changes whenever sequences end.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KERNELS)


def keep_memory() -> None:
    """Makes glibc keep freed memory until `release_memory`.

    Otherwise each large tensor gets new pages from the kernel, which can take longer than computing the tensor.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)  # never trim
        mallopt(_MMAP_MAX, 0)  # no mapping per tensor, which would be unmapped when the tensor is freed


def release_memory() -> None:
    """Returns the free memory that glibc holds to the system.

    Otherwise no other process can use it, nor can this one for a larger block than the ones that were freed.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def multiply_by_onednn(wanted: bool) -> None:
    """Makes oneDNN compute float32 matrix products, or undoes that; some processors take half of MKL's time.

    torch uses oneDNN for them only if it may round the factors to bfloat16. Nothing changes where oneDNN does round
    them, or where the precision was set already.
    """
    matmul = _matmul()
    if wanted and matmul.fp32_precision == "none" and exact():
        matmul.fp32_precision = "bf16"
    elif not wanted and matmul.fp32_precision == "bf16":
        matmul.fp32_precision = "none"  # compiled attention needs one precision for all devices


@functools.cache
def exact() -> bool:
    """Whether products stay as exact as float32 where torch allows rounding the factors to bfloat16."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows, matrix = (torch.randn(size, 576, generator=generator) for size in (256, 1536))
    matmul = _matmul()
    was, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        product = rows @ matrix.T
    finally:
        matmul.fp32_precision = was
    expected = rows.double() @ matrix.double().T
    return bool((product - expected).norm() <= _ROUNDING * expected.norm())


def _matmul() -> Any:
    import torch

    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
