"""What torch and the C library are told, for all of the process, before they compute on a CPU.

It changes speed and rounding, and what rounding decides, such as a sampled token now and then.
"""

from __future__ import annotations

import ctypes
import functools
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_KERNELS = "32"  # more than a pass needs, which has about a dozen; oneDNN's own bounds are 1024
_ROUNDING = 1e-5  # of a float32 product, against float64; with factors in bfloat16 it is above 1e-3
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # by their names in malloc.h


def prepare(device: torch.device) -> None:
    """Sets up this process to compute on a device."""
    if device.type == "cpu":
        hold_few_kernels()
        keep_memory()
    multiply_by_onednn(device.type == "cpu")


def hold_few_kernels() -> None:
    """Has oneDNN keep few of the kernels that it makes for each number of rows, before it makes the first.

    They take some 0.4 MB each, and there is another number of rows whenever some have ended. What the environment says
    stands.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, _KERNELS)


def keep_memory() -> None:
    """Has the C library, where it is glibc, keep memory that was freed, until `give_back`.

    Else each large tensor gets new pages from the system, which can take longer than to compute it.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, -1)  # never
        mallopt(_MMAP_MAX, 0)  # no tensor apart from all others, to be unmapped when it is freed


def give_back() -> None:
    """Gives free memory that the C library holds for later back to the system, where it is glibc.

    Else no other process can have it, nor this one in pieces of another size than those that were freed.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def multiply_by_onednn(wanted: bool) -> None:
    """Has oneDNN compute float32 products, which takes half as long as MKL on some processors; or no longer.

    torch asks oneDNN for them only where it may round factors to bfloat16. Where oneDNN does so, all stays as it was,
    and so does what somebody else has set.
    """
    matmul = _matmul()
    if wanted and matmul.fp32_precision == "none" and exact():
        matmul.fp32_precision = "bf16"
    elif not wanted and matmul.fp32_precision == "bf16":
        matmul.fp32_precision = "none"  # compiled attention asks for the precision of all devices, which must agree


@functools.cache
def exact() -> bool:
    """Whether a product for which factors may be rounded to bfloat16 is that of float32 all the same."""
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
