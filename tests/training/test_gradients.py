"""Gradients that are added up in place are those that torch makes anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stasc.prefix_tree import batch
from stasc.training import gradients


def llama(*, tied: bool) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=2,  # whose row of the embedding gets no gradient
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).double()


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4)).double()


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "tied": lambda: llama(tied=True),
    "untied": lambda: llama(tied=False),
    "gpt2": gpt2,  # most of its matrices are no linear layers
}


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    some = [torch.randint(0, 50, (2, length), generator=generator) for length in (7, 5, 9)]
    some[0][0, 2] = some[1][1, 1] = 2
    return some


def add_gradients(network: nn.Module) -> dict[str, Tensor]:
    """Those of all batches together, and without them in the network."""
    for ids in batches():
        network(input_ids=ids, labels=ids).loss.backward()
    found = {
        name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None
    }
    network.zero_grad()
    return found


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_gradients_of_several_micro_batches_are_the_same_in_every_step(make: Callable[[], PreTrainedModel]) -> None:
    torch.manual_seed(0)
    network = make()
    network.eval()  # without dropout, which would be another each time
    expected = add_gradients(network)
    memory: gradients.Kept = {}
    with gradients.kept(network, memory):
        for _ in range(2):  # the second in the memory of the first
            found = add_gradients(network)
            assert found.keys() == expected.keys()
            for name, gradient in expected.items():
                assert torch.allclose(found[name], gradient, rtol=1e-10, atol=1e-14), name
    assert memory


def test_a_gradient_is_kept_where_it_was() -> None:
    torch.manual_seed(0)
    network = llama(tied=True)
    weight = network.get_input_embeddings().weight
    memory: gradients.Kept = {}
    with gradients.kept(network, memory):
        for _ in range(3):
            network(input_ids=batches()[0], labels=batches()[0]).loss.backward()
            assert weight.grad is memory[weight]
            network.zero_grad()
            assert weight.grad is None


def test_weights_that_are_not_trained_get_no_gradient_and_a_network_is_left_as_it_was() -> None:
    network = llama(tied=False)
    first = network.get_input_embeddings()
    first.weight.requires_grad_(False)
    with gradients.kept(network, {}):
        add_gradients(network)
        assert "forward" not in vars(first)
    assert not any("forward" in vars(module) for module in network.modules())
    assert first.weight.grad is None


def test_what_has_hooks_is_left_alone_and_what_is_frozen_later_gets_no_gradient() -> None:
    network = llama(tied=False)
    head, first = network.get_output_embeddings(), network.get_input_embeddings()
    heard: list[nn.Parameter] = []
    head.weight.register_post_accumulate_grad_hook(heard.append)
    with gradients.kept(network, {}):
        first.weight.requires_grad_(False)
        network(input_ids=batches()[0], labels=batches()[0]).loss.backward()
    assert len(heard) == 1
    assert heard[0] is head.weight
    assert first.weight.grad is None


def test_a_row_of_values_without_a_batch_has_a_gradient_as_well() -> None:
    layer = nn.Linear(3, 2, bias=False)
    with gradients.kept(layer, {}):
        layer(torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, 2, 3], [1, 2, 3]]


def test_autocast_has_torch_s_own_gradients() -> None:
    network = llama(tied=True).float()
    memory: gradients.Kept = {}
    with gradients.kept(network, memory), torch.autocast("cpu", torch.bfloat16):
        network(input_ids=batches()[0], labels=batches()[0]).loss.backward()
    assert not memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_of_some_logits_and_its_gradient_are_those_of_cross_entropy(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 30, dtype=dtype, requires_grad=True)
    rows, columns = torch.tensor([0, 0, 1, 1, 0]), torch.tensor([1, 4, 0, 3, 1])  # one of them twice
    labels, weights = torch.tensor([3, 0, 29, 7, 4]), torch.rand(5, dtype=dtype)
    expected = nn.functional.cross_entropy(logits[rows, columns], labels, reduction="none")
    (gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    losses = -batch.log_likelihood(logits, rows, columns, labels)
    (found,) = torch.autograd.grad((losses * weights).sum(), logits)
    rtol = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(losses, expected, rtol=rtol, atol=0)
    torch.testing.assert_close(found, gradient, rtol=rtol, atol=rtol)
