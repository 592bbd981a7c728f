"""A fixture of several test files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from wandb_backend import Backend
from wandb_content import PARTS, Bench
from zygote import Zygote


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Zygote) -> Iterator[Bench]:
    """A folder for commands whose W&B server is on loopback."""
    (tmp_path / "parts.py").write_text(PARTS)
    with Backend() as backend:
        bench = Bench(tmp_path, backend, command, monkeypatch)
        bench.set(**backend.environment())
        yield bench
    assert {*backend.unknown} <= {"/"}  # which only asks whether there is a server
