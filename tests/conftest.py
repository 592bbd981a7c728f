"""What all tests share: a cache of their own, no account, no network."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from zygote import Zygote, zygote

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it


@pytest.fixture(autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No W&B account or setting of the user's is seen, and models are made in a temporary cache."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("STASC_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("STASC_STORE", str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that is possible: thousands of syncs to a disk would take minutes."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """Runs the command, with a cache of its own."""
    with zygote(tmp_path_factory.getbasetemp() / "cache") as running:
        yield running
