"""Fixtures of the engines' tests: the tiny model, in float64 where something is claimed to be exact."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_lm import load, prompts
from transformers import (
    LlamaForCausalLM,
)

from stasc.engines import noise
from stasc.engines.engine import Request
from stasc.engines.hf import prefill
from stasc.models import sources


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def model(folder: str) -> LlamaForCausalLM:
    return load(folder, torch.float64)


@pytest.fixture
def shapes(model: LlamaForCausalLM) -> Iterator[list[tuple[int, ...]]]:
    """The shape of the token ids of each forward pass, but for those that try what the model can do."""
    with torch.inference_mode():
        prefill.shares(model)
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.fixture(scope="session")
def questions() -> list[Request]:
    lengths = [1, 2, 2, 3, 5, 8, 8, 13, 21, 30, 40, 4]
    return [
        Request(prompt, tuple(noise.noise_key("question", index, sample) for sample in range(1 + index % 3)))
        for index, prompt in enumerate(prompts(lengths, shared=5))
    ]
