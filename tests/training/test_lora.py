"""An adapter starts as the function of M_0, and is all that LoRA and QLoRA train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import assert_same, differ, logits, make, make_live, read, train, weights
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from stasc.models.live import LiveModel
from stasc.models.model import M_0, Model
from stasc.training.methods import Lora

# LoRA.


def begin(settings: Lora, live: LiveModel, folder: Path, start: Model = M_0, seed: int = 0) -> Model:
    """The model that a fine-tuning begins with, saved as it is."""
    network = settings.network(live, start, seed)
    settings.save(network, folder)
    model = settings.model(start, folder)
    live.adopt(model, network, live.dtype)
    return model


each_adapter = pytest.mark.parametrize(
    "changes", [{}, {"dora": True}, {"rslora": True}, {"dropout": 0.5}], ids=["lora", "dora", "rslora", "dropout"]
)


@each_adapter
def test_a_new_adapter_starts_as_the_function_of_m_0(base: str, tmp_path: Path, changes: dict[str, Any]):
    live = make_live(base)
    model = begin(make("lora", **changes), live, tmp_path / "1")
    assert isinstance(live.load(model), PeftModel)
    torch.testing.assert_close(logits(live.load(model)), logits(read(base)), rtol=0.0, atol=1e-10)


@each_adapter
def test_an_evolving_start_goes_on_from_the_adapter(base: str, tmp_path: Path, changes: dict[str, Any]):
    live = make_live(base)
    m_1, _ = train(make("lora", **changes), live, tmp_path / "1")
    expected = logits(live.load(m_1))
    m_2 = begin(make("lora", **changes), live, tmp_path / "2", m_1, seed=1)
    assert_same(
        load_file(m_2.adapter / "adapter_model.safetensors"), load_file(tmp_path / "1/adapter_model.safetensors")
    )
    torch.testing.assert_close(logits(live.load(m_2)), expected, rtol=0.0, atol=1e-12)


def test_a_fixed_start_begins_a_new_adapter(base: str, tmp_path: Path):
    live = make_live(base)
    train(make("lora"), live, tmp_path / "1")
    model = begin(make("lora"), live, tmp_path / "2", seed=1)
    adapter = load_file(tmp_path / "2" / "adapter_model.safetensors")
    assert all(value.count_nonzero() == 0 for name, value in adapter.items() if "lora_B" in name)
    assert list(live.load(model).peft_config) == ["default"]


@each_adapter
def test_the_base_weights_never_change_and_no_adapter_is_merged(base: str, tmp_path: Path, changes: dict[str, Any]):
    live, settings = make_live(base), make("lora", **changes)
    m_1, _ = train(settings, live, tmp_path / "1")
    m_2, _ = train(settings, live, tmp_path / "2", m_1, seed=1)
    network = live.load(m_2)
    assert not any(module.merged for module in network.modules() if isinstance(module, LoraLayer))
    m_0 = weights(read(base))
    wrapped = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): w for name, w in weights(network).items()
    }
    assert_same({name: wrapped[name] for name in m_0}, m_0)
    assert (m_2.weights, m_2.adapter) == (None, tmp_path / "2")
    assert {file.name for file in (tmp_path / "2").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert differ({"": logits(network)}, {"": logits(read(base))})
    assert torch.equal(logits(live.load(M_0)), logits(read(base)))


def test_a_saved_adapter_reloads_as_it_is_in_memory(base: str, tmp_path: Path):
    live = make_live(base)
    model, _ = train(make("lora", dropout=0.5), live, tmp_path / "1")
    reloaded = PeftModel.from_pretrained(read(base), tmp_path / "1")
    torch.testing.assert_close(logits(reloaded), logits(live.load(model)), rtol=0.0, atol=1e-12)


def test_the_settings_of_an_adapter_arrive_in_its_file(base: str, tmp_path: Path):
    settings = make(
        "lora", rank=3, alpha=5.0, dropout=0.25, target_modules=["q_proj", "up_proj"], dora=True, rslora=True
    )
    begin(settings, make_live(base), tmp_path / "1")
    saved = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "task_type")
    assert [saved[name] for name in names] == [3, 5.0, 0.25, True, True, "CAUSAL_LM"]
    assert sorted(saved["target_modules"]) == ["q_proj", "up_proj"]


@pytest.mark.parametrize("switch", ["dora", "rslora"])
def test_dora_and_rslora_are_off_unless_asked_for(base: str, tmp_path: Path, switch: str):
    begin(make("lora", **{switch: True}), make_live(base), tmp_path / "1")
    saved = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    assert {name for name in ("dora", "rslora") if saved[f"use_{name}"]} == {switch}


def test_all_linear_adapts_every_projection_but_the_output_layer(base: str, tmp_path: Path):
    live = make_live(base)
    model = begin(make("lora"), live, tmp_path / "1")
    adapted = {
        name.split(".")[-1] for name, module in live.load(model).named_modules() if isinstance(module, LoraLayer)
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("target_modules", [["nope"], ["q_proj", "v_prj"], ["mlp"]])
def test_target_modules_that_cannot_be_adapted_are_named(base: str, tmp_path: Path, target_modules: list[str]):
    with pytest.raises(ValueError, match=r"finetune\.target_modules=\[.*" + target_modules[-1]):
        train(make("lora", target_modules=target_modules), make_live(base), tmp_path / "1")


# QLoRA.


def test_m_0_of_qlora_is_the_model_in_nf4_in_sampling_too(base: str):
    from bitsandbytes.nn import Linear4bit

    network = make_live(base, torch.float32, four_bit=True).load(M_0)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == 2 * 7  # layers of the tiny model, each with the projections of attention and MLP
    assert {layer.weight.quant_type for layer in layers.values()} == {"nf4"}
    assert {layer.weight.quant_state.nested for layer in layers.values()} == {True}
    error = (logits(network).double() - logits(read(base))).abs().mean()
    assert 1e-3 < error < logits(read(base)).std(), "near M_0, and not M_0"


def test_a_new_adapter_on_4_bits_starts_as_the_4_bit_m_0(base: str, tmp_path: Path):
    live = make_live(base, torch.float32, four_bit=True)
    expected = logits(live.load(M_0))
    model = begin(make("qlora"), live, tmp_path / "1")
    torch.testing.assert_close(logits(live.load(model)), expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlora_trains_the_adapter_and_leaves_the_4_bit_weights(base: str, tmp_path: Path, dtype: torch.dtype):
    live = make_live(base, dtype, four_bit=True)
    before = weights(live.load(M_0))
    first, _ = train(make("qlora", batch_size=6, learning_rate=0.2), live, tmp_path / "1")
    _, training = train(make("qlora", batch_size=6), live, tmp_path / "2", first)
    _, untouched = train(make("qlora", batch_size=6, learning_rate=1e-9), live, tmp_path / "3")
    assert training.loss < untouched.loss
    assert_same(weights(live.load(M_0)), before)
    adapter = load_file(tmp_path / "2" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}


def test_sampling_from_a_4_bit_model_leaves_its_training_as_it_was(base: str, tmp_path: Path):
    adapters = []
    for sampled in (False, True):
        live = make_live(base, torch.float32, four_bit=True)
        if sampled:
            logits(live.load(M_0))
        train(make("qlora"), live, tmp_path / str(sampled))
        adapters.append(load_file(tmp_path / str(sampled) / "adapter_model.safetensors"))
    assert_same(*adapters)


def test_4_bits_of_float64_are_refused_before_any_model_is_read():
    with pytest.raises(ValueError, match=r"model\.dtype=float64 cannot be held in 4 bits"):
        make_live("no such model", torch.float64, four_bit=True)
