"""Compiled layers: they change no answer, and compile once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sampled import sampled
from tiny_lm import decoding, load

from stasc.engines.engine import Request
from stasc.engines.hf import prefill
from stasc.engines.hf.engine import HF


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starts without any compiled code of this process or earlier ones."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_layers_change_no_answer_compile_once_and_are_restored(
    folder: str, questions: list[Request], fresh: None
) -> None:
    network = load(folder, torch.float64)
    expected = sampled(HF(64), network, questions, decoding(max_new_tokens=6))
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    assert sampled(HF(64, compiled=True), network, questions, decoding(max_new_tokens=6)) == expected
    graphs = counted["unique_graphs"]
    assert graphs == 4, "for several rows and for one, not for each layer or number of rows"
    assert sampled(HF(7, compiled=True), network, questions, decoding(max_new_tokens=6)) == expected
    assert counted["unique_graphs"] == graphs
    assert all(part._compiled_call_impl is None for part in network.modules())


def test_a_failed_compilation_names_the_setting_to_change(folder: str, questions: list[Request], fresh: None) -> None:
    network = load(folder, torch.float64)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"engine\.compiled=true: .*set engine\.compiled=false"),
    ):
        sampled(HF(64, compiled=True), network, questions, decoding(max_new_tokens=2))
    assert all(part._compiled_call_impl is None for part in network.modules())
    assert prefill._mask(network) == "rows"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_all_forms_of_a_model_are_compiled(folder: str, questions: list[Request], fresh: None) -> None:
    network, counted = load(folder, torch.float64), torch._dynamo.utils.counters
    counted.clear()
    config = LoraConfig(r=2, target_modules=["up_proj", "q_proj"], init_lora_weights=False)
    for _ in range(3):
        adapted = get_peft_model(network, config)
        for model in (adapted, adapted.unload()):
            found, expected = (
                sampled(HF(64, compiled=c), model, questions, decoding(max_new_tokens=3)) for c in (True, False)
            )
            assert found == expected
    assert not [reason for reason in counted["graph_break"] if "limit" in reason]
    assert counted["frames"]["ok"] == counted["frames"]["total"]
