"""What will not fit onto the disk is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from test_run import experiment, run_tiny

from stasc import disk, fsx
from stasc.console import Console
from stasc.experiment import run


@pytest.mark.slow
@pytest.mark.parametrize(("finetune", "keep"), [("full", "last"), ("lora", "all")])
def test_the_room_that_is_asked_for_is_what_the_weights_take_at_most(
    finetune: str, keep: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    estimates, held = [], [0]

    def estimate(*arguments: Any) -> int:
        estimates.append(real(*arguments))
        return estimates[0]

    def look(step: str, path: Path) -> None:
        held.append(sum(file.stat().st_size for file in (folder / "run.store").rglob("*.safetensors")))

    real = disk.weights_bytes
    monkeypatch.setattr(disk, "weights_bytes", estimate)
    monkeypatch.setattr(fsx, "at", look)
    summary = run_tiny(
        folder / "run", f"finetune={finetune}", f"store.keep_models={keep}", "filter=lenient", "iterations=3"
    )
    assert summary["status"] == "finished"
    assert estimates[0] == pytest.approx(max(held), rel=0.2)
    models = max(held) / held[-1] if keep == "last" else max(held) / (held[-1] / 3)
    assert round(models) == {"last": 2, "all": 3}[keep]


@pytest.mark.parametrize(("keep", "advice"), [("last", ""), ("all", ", or store.keep_models=last")])
def test_a_run_that_will_not_fit_is_refused_before_anything_is_sampled(
    keep: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fsx, "free", lambda path: 3 * 2**20)
    built = experiment(f"store.dir={tmp_path / 'store'}", f"store.keep_models={keep}")
    expected = (
        rf"store\.dir={tmp_path}/store: this run needs about 50\.\d MiB there, and 3\.0 MiB are free: "
        rf"make room \(python -m stasc\.store clean\), or set store\.dir to another disk{re.escape(advice)}$"
    )
    with pytest.raises(OSError, match=expected) as refused:
        run(built, tmp_path, "group", Console())
    assert fsx.is_full(refused.value), "it has the exit status of a full disk"
    assert {path.name for path in (tmp_path / "store").iterdir()} <= {"digests.json"}
    assert not (tmp_path / "summary.json").exists()
