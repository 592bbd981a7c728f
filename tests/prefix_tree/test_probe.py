"""Which networks can compute prefix trees is found out by trial."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetuning import read
from torch import Tensor
from transformers import GPTNeoConfig, Llama4TextConfig

from stasc.prefix_tree import probe
from stasc.prefix_tree.masks import Mask

pytestmark = pytest.mark.usefixtures("exact_norms")


def mask_of(network: Any) -> Mask | None:
    return probe.probe(network, torch.float64)[0]


def test_a_model_that_attends_by_other_means_than_the_mask_is_computed_in_rows(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = read(base)
    assert mask_of(network) == "rows"
    forward = type(network).forward

    def causal(self: Any, *args: Any, attention_mask: Tensor, **kwargs: Any) -> Any:
        return forward(self, *args, attention_mask=attention_mask if attention_mask.dim() == 2 else None, **kwargs)

    monkeypatch.setattr(type(network), "forward", causal)
    assert mask_of(network) is None


def test_a_model_that_does_not_hand_on_what_attention_is_given_takes_a_mask_of_the_whole_tree(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = read(base)
    assert mask_of(network) == "rows"
    forward = type(network).forward
    monkeypatch.setattr(type(network), "forward", lambda self, *args, layout=None, **more: forward(self, *args, **more))
    assert mask_of(network) == torch.bool


def test_a_window_by_another_name_is_found() -> None:
    """GPT-Neo's and Llama 4's count columns, which in a tree are not positions."""
    local = GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]], window_size=16)
    chunks = Llama4TextConfig(num_hidden_layers=2, attention_chunk_size=8)
    for config in (local, chunks):
        network: Any = SimpleNamespace(config=config)
        assert not probe.attends_to_all(network, 9)


def test_an_implementation_of_attention_without_free_masks_is_computed_in_rows(base: str) -> None:
    network = read(base)
    network.config._attn_implementation = "flash_attention_2"
    assert mask_of(network) is None


def test_a_trial_leaves_the_network_as_it_was(base: str) -> None:
    network = read(base).train()
    mask_of(network)
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())
