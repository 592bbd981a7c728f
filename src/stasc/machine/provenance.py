"""The provenance of a run: library versions, commit, machine and data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from stasc.records import Question

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("stasc", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "tokenizers", "safetensors")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that affect results."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _LIBRARIES}


def machine(device: torch.device) -> dict[str, str | int]:
    """Returns what affects rounding besides versions: processor, instruction set, threads, torch build, accelerator."""
    import torch

    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:12],
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else "none",
    }


def commit() -> str | None:
    """Returns the commit of the package's checkout, with `+` if files were changed; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        _git(here, "ls-files", "--error-unmatch", Path(__file__).name)  # fails if git does not track this file
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def data_digest(questions: Sequence[Question], skipped: Iterable[str] = ()) -> str:
    """Returns the sha256 of the questions and their references, in order, and of the names of skipped rows."""
    lines = [json.dumps(asdict(question), ensure_ascii=True, sort_keys=True) for question in questions]
    lines += [json.dumps(name, ensure_ascii=True) for name in skipped]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
