"""Each method of fine-tuning writes what it trained, goes on from it, and leaves M_0 as it was."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import METHODS, assert_same, differ, logits, make, make_both, make_live, read, train, weights
from safetensors.torch import load_file

from stasc.models.live import LiveModel
from stasc.models.model import M_0, Model
from stasc.records import OptimizerStep
from stasc.training.methods import Full, Method

# The trained model.


def test_a_fully_trained_model_reloads_as_it_is_in_memory(base: str, tmp_path: Path):
    live = make_live(base)
    model, _ = train(make("full"), live, tmp_path / "1")
    assert model == Model(weights=tmp_path / "1", adapter=None)
    in_memory = weights(live.load(model))
    assert_same(weights(read(str(tmp_path / "1"))), in_memory)
    assert_same(weights(make_live(base).load(model)), in_memory)
    assert differ(in_memory, weights(read(base)))


def test_a_fully_trained_model_has_the_configuration_of_m_0(base: str, tmp_path: Path):
    train(make("full", gradient_checkpointing=True), make_live(base), tmp_path / "1")
    of_m_0, of_m_1 = (json.loads(Path(folder, "config.json").read_text()) for folder in (base, tmp_path / "1"))
    assert of_m_1 == of_m_0 | {"dtype": "float64"}


@pytest.mark.parametrize("method", METHODS)
def test_the_files_of_m_0_are_never_touched(base: str, tmp_path: Path, method: str):
    def digests() -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(base).iterdir()}

    before = digests()
    settings, live = make_both(base, method)
    model, _ = train(settings, live, tmp_path / "1")
    train(settings, live, tmp_path / "2", model)
    assert digests() == before


@pytest.mark.parametrize("method", METHODS)
def test_m_0_is_as_before_right_after_a_training(base: str, tmp_path: Path, method: str):
    settings, live = make_both(base, method)
    before = logits(live.load(M_0))
    train(settings, live, tmp_path / "1")
    assert torch.equal(logits(live.load(M_0)), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_start_gives_the_same_model_however_many_were_trained_before(base: str, tmp_path: Path, method: str):
    settings, live = make_both(base, method)
    m_1, _ = train(settings, live, tmp_path / "1")
    first = weights(live.load(m_1))
    m_2, _ = train(settings, live, tmp_path / "2")
    assert_same(weights(live.load(m_2)), first)


@pytest.mark.parametrize("method", METHODS)
def test_an_evolving_start_goes_on_alike_from_memory_and_from_disk(base: str, tmp_path: Path, method: str):
    settings = make(method)
    dtype = torch.float32 if settings.four_bit else torch.float64
    live = make_live(base, dtype, four_bit=settings.four_bit)
    m_1, _ = train(settings, live, tmp_path / "1")
    first = weights(live.load(m_1))
    m_2, _ = train(settings, live, tmp_path / "2", m_1, seed=1)
    from_memory = weights(live.load(m_2))

    restarted = make_live(base, dtype, four_bit=settings.four_bit)
    restarted.load(M_0)  # which is then in the way
    m_2, _ = train(settings, restarted, tmp_path / "again", m_1, seed=1)

    assert_same(weights(restarted.load(m_2)), from_memory)
    assert differ(from_memory, first)


def test_weights_are_trained_in_32_bits_where_the_model_is_sampled_in_16(base: str, tmp_path: Path):
    live = make_live(base, torch.bfloat16)
    model, _ = train(make("full", learning_rate=1e-5), live, tmp_path / "1")
    saved, start = load_file(tmp_path / "1" / "model.safetensors"), load_file(f"{base}/model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    moved = {name for name in saved if differ({"": saved[name]}, {"": start[name]})}
    lost = {name for name in moved if torch.equal(saved[name].bfloat16(), start[name].bfloat16())}
    assert moved == saved.keys() and lost, "steps too small for 16 bits are kept"
    assert live.load(model).dtype == torch.bfloat16
    assert live.load(model, live.training_dtype).dtype == torch.float32


def test_training_in_16_bits_computes_in_16_bits(base: str, tmp_path: Path):
    of_32, of_16 = (
        train(make("full", batch_size=6), make_live(base, dtype), tmp_path / str(dtype))[1].loss
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 1e-5 < abs(of_32 - of_16) / of_32 < 2e-2


@pytest.mark.parametrize("method", METHODS)
def test_after_training_the_network_in_memory_is_as_if_read_again(base: str, tmp_path: Path, method: str):
    settings = make(method)
    live, other = (make_live(base, torch.bfloat16, four_bit=settings.four_bit) for _ in range(2))
    model, _ = train(settings, live, tmp_path / "1")
    dtype = live.training_dtype if method == "full" else None
    network = live.load(model, dtype)
    assert all(parameter.grad is None for parameter in network.parameters())
    actual, expected = logits(network), logits(other.load(model, dtype))
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


# A method of your own.


@dataclass(frozen=True)
class Norms(Full):
    """Trains the weights of norms alone."""

    def network(self, live: LiveModel, start: Model, seed: int) -> Any:
        network = super().network(live, start, seed)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("norm" in name)
        return network


def test_a_method_of_your_own_trains_what_it_says(base: str, tmp_path: Path):
    live, settings = make_live(base), Norms(**vars(make("full")))
    m_1, _ = train(settings, live, tmp_path / "1")
    m_2, _ = train(settings, live, tmp_path / "2", m_1, seed=1)
    before, first, second = (weights(read(folder)) for folder in (base, str(tmp_path / "1"), str(tmp_path / "2")))
    assert m_2 == Model(weights=tmp_path / "2")
    assert {name for name in before if differ({"": before[name]}, {"": first[name]})} == {
        name for name in before if "norm" in name
    }
    assert differ(first, second)
    assert_same(weights(live.load(m_2)), second)


# Settings.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -1e-5),
        ("learning_rate", math.nan),
        ("epochs", 0),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("micro_batch_tokens", 0),
        ("shuffle", "none"),
        ("optimizer", "adam"),
        ("schedule", "lineal"),
        ("warmup_ratio", 1.0),
        ("warmup_ratio", -0.1),
        ("weight_decay", -0.1),
        ("max_grad_norm", -1.0),
        ("on_nonfinite", "skip"),
        ("max_skipped_steps", -1),
        ("rank", 0),
        ("alpha", 0.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("target_modules", []),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name: str, value: object):
    with pytest.raises(ValueError, match=rf"finetune\.{name}={value}: expected".replace("[]", r"\[\]")):
        make("lora", **{name: value})
    if name in {field.name for field in fields(Method)}:
        with pytest.raises(ValueError, match=rf"finetune\.{name}="):
            make("full", **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1, "batch_size": 1, "micro_batch_size": 1},
        {"batch_size": 6, "micro_batch_size": 3},
        {"warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_skipped_steps": 0},
        {"rank": 1, "dropout": 0.0, "target_modules": ["q_proj"]},
    ],
)
def test_settings_at_the_edge_of_their_range_are_taken(changes: dict[str, Any]):
    assert all(getattr(make("lora", **changes), name) == value for name, value in changes.items())


# CUDA.


@pytest.mark.gpu
def test_on_cuda_in_bfloat16_weights_are_trained_in_float32_on_that_device(base: str, tmp_path: Path):
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    live = LiveModel(base, None, device, torch.bfloat16, four_bit=False)
    seen: set[tuple[torch.device, torch.dtype]] = set()

    def look(step: OptimizerStep) -> None:
        network = live.load(M_0, live.training_dtype)
        seen.update((parameter.device, parameter.dtype) for parameter in network.parameters())

    model, training = train(
        make("full", optimizer="adamw_torch", learning_rate=1e-5), live, tmp_path / "1", on_step=look
    )

    assert seen == {(device, torch.float32)}
    assert math.isfinite(training.loss) and training.steps == 2
    saved = load_file(tmp_path / "1" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    sampled = live.load(model)
    assert (sampled.device, sampled.dtype) == (device, torch.bfloat16)
    assert sampled.lm_head.weight.dtype == torch.bfloat16
