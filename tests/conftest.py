"""What all tests share: a cache of their own, no account, no network; and fixtures of several files."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skips import NO_GPU, pytest_addoption, pytest_sessionfinish, pytest_terminal_summary  # noqa: F401 - hooks
from tracked import FakeWandb
from zygote import Zygote, zygote

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub reads it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch does: threads of a tiny model wait for each other


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
def _quick() -> Iterator[None]:
    """A training ends in a full garbage collection, which takes its time over all that was ever imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _gpu(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip(NO_GPU)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that is possible: thousands of syncs to a disk would take minutes."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def command() -> Iterator[Zygote]:
    """Runs the command in a process of its own, without the seconds that a new one takes."""
    with zygote() as running:
        yield running


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """M_0: the tiny model."""
    from stasc.models import sources

    return sources.fetch("tiny:0", tmp_path_factory.mktemp("models"))


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers computes this norm in float32 whatever the model's dtype, where rounding falls now so, now so."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self: Any, hidden: Any) -> Any:
        return self.weight * hidden * (hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


@pytest.fixture
def nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B sees a user's home that is empty, and leaves no service behind."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield
    if isinstance(sys.modules.get("wandb"), types.ModuleType) and hasattr(sys.modules["wandb"], "__path__"):
        sys.modules["wandb"].teardown()


@pytest.fixture(scope="session")
def mirrored(command: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep of two jobs in multirun/mirrored, and a baseline beside it, all with W&B offline."""
    folder = tmp_path_factory.mktemp("mirrored")
    small = (
        *("model=tiny", "dataset.n_train=3", "dataset.n_test=3", "sampling.max_new_tokens=4", "iterations=2"),
        "finetune.truncated=keep",
    )
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            environment.delenv(name)
        for name in ("HOME", "STASC_CACHE"):
            environment.setenv(name, str(folder / "home"))
        environment.setenv("NETRC", str(folder / "home" / "netrc"))
        for given in (
            ("--multirun", "init=fixed,evolving", "filter=all", "sweep.name=mirrored"),
            ("baseline=self_consistency", "evaluation.n_init=4", "hydra.run.dir=baseline"),
        ):
            ran = command.run(folder, *given, *small, "tracking.mode=offline")
            assert ran.returncode == 0, ran.stderr
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[FakeWandb]:
    """What a run takes for wandb."""
    caplog.set_level(logging.INFO)
    importlib.import_module("wandb")  # now: a call that was left behind must not do it beside a later test
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    yield fake
    fake.released.set()
