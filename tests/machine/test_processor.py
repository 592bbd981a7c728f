"""The set-up of a process for computing on a CPU."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stasc.machine import processor


def test_the_kernel_cache_is_limited_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")  # so that it is put back afterwards
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    processor.limit_kernel_cache()
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"


@pytest.fixture
def matmul() -> Iterator[Any]:
    """Yields the precision setting of matrix products, and restores it."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    was, matmul.fp32_precision = matmul.fp32_precision, "none"
    processor.exact.cache_clear()
    yield matmul
    matmul.fp32_precision = was
    processor.exact.cache_clear()


def test_products_that_onednn_computes_are_those_of_float32(matmul: Any) -> None:
    processor.multiply_by_onednn(True)
    generator = torch.Generator().manual_seed(3)
    for rows, inner, outer in ((1, 64, 64), (300, 576, 1536), (88, 576, 9000), (512, 2048, 300)):
        x, w = torch.randn(rows, inner, generator=generator), torch.randn(outer, inner, generator=generator)
        batched = x.expand(3, -1, -1)
        for found in (x @ w.T, torch.nn.functional.linear(x, w), (batched @ w.T)[2]):
            exact = x.double() @ w.double().T
            assert (found - exact).norm() <= 2e-6 * exact.norm()


def test_onednn_is_left_alone_where_its_products_are_not_those_of_float32(
    matmul: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "_ROUNDING", 1e-9)  # as if float32 could be so exact
    processor.multiply_by_onednn(True)
    assert matmul.fp32_precision == "none"


def test_a_precision_that_was_set_stays_and_another_device_than_a_cpu_has_torch_s_own(matmul: Any) -> None:
    matmul.fp32_precision = "ieee"
    processor.multiply_by_onednn(True)
    assert matmul.fp32_precision == "ieee"
    matmul.fp32_precision = "bf16"
    processor.prepare(torch.device("cuda"))
    assert matmul.fp32_precision == "none"
    torch.get_float32_matmul_precision()  # raises where devices disagree


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they like")
def test_memory_that_was_freed_is_used_again() -> None:
    code = """
import resource
from stasc.machine import processor

def faults():
    "Pages that had to be had from the system to fill 64 MiB, in pieces of 8."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    some = [b"x" * 2**23 for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

processor.keep_memory()
kept = min(faults() for _ in range(5))  # the first of them makes room that fits
processor.release_memory()
print(kept, faults())
"""
    # In a process of its own: what others left of the heap decides where new pieces go.
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, given_back = map(int, found.stdout.split())
    assert kept < given_back / 4
