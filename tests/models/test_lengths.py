"""Models that compute a sequence differently beside a longer one answer and learn as if it were alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetuning import CPU, END, assert_same, make, nothing
from sampled import sampled
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    DynamicCache,
    Gemma2Config,
    MptConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from stasc.engines import noise
from stasc.engines.engine import Decoding, Request
from stasc.engines.hf import prefill
from stasc.engines.hf.engine import HF
from stasc.models import lengths
from stasc.prefix_tree import probe
from stasc.prefix_tree.batch import Example
from stasc.training import loop
from stasc.training.losses import NLL

VOCABULARY = 96
SWITCH = 16
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": SWITCH,
    "factor": 8.0,
}


def build(config: PreTrainedConfig, attention: str | None = None) -> PreTrainedModel:
    """A network in float64 whose attention is sharp, so that positions matter."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config, attn_implementation=attention).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    return network


def longrope(kind: str = "phi3") -> PreTrainedModel:
    more = {"original_max_position_embeddings": SWITCH} if kind == "phi3" else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        eos_token_id=END,
        pad_token_id=0,
        bos_token_id=2,
        max_position_embeddings=128,
        rope_parameters=LONGROPE,
        **more,
    )
    return build(config)


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


PROMPTS = [
    *(tokens(length, seed) for seed, length in enumerate([5, 9, 14, 15, 16, 17, 24, 40])),
    *(tokens(10, 99) + tokens(length, seed) for seed, length in enumerate([3, 9, 20])),
]


@torch.inference_mode()
def alone(network: PreTrainedModel, prompt: Sequence[int], key: int, how: Decoding) -> tuple[int, ...]:
    """Samples an answer token by token, each from a pass over the whole sequence, without a cache."""
    ids: list[int] = []
    while len(ids) < how.max_new_tokens and not (ids and ids[-1] in how.stop_ids):
        logits = network(torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0, -1]
        drawn = logits / how.temperature + noise.gumbel_all(torch.tensor([key]), len(ids), VOCABULARY)[0]
        ids.append(int((drawn if how.temperature else logits).argmax()))
    return tuple(ids)


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "rows"])
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_prompts_on_both_sides_of_a_switch_of_factors_are_answered_as_alone(
    shared: bool, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, how = longrope(), Decoding(temperature, 1.0, 8, frozenset({END}))
    if not shared:
        monkeypatch.setattr(prefill, "_mask", lambda network: None)
    requests = [Request(prompt, (i, i + 100)) for i, prompt in enumerate(PROMPTS)]
    told: list[int] = []
    found = sampled(HF(64), network, requests, how, lambda k=1: told.append(k))
    for request, answers in zip(requests, found, strict=True):
        for key, answer in zip(request.keys, answers, strict=True):
            assert answer.ids == alone(network, request.prompt, key, how)
            assert answer.truncated == (len(answer.ids) == 8 and answer.ids[-1] != END)
    assert sum(told) == 2 * len(PROMPTS)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_greedy_answers_are_those_of_phi_3_s_own_generate() -> None:
    """Phi-3 recomputes all keys at the switch."""
    network = longrope()
    found = sampled(
        HF(64), network, [Request(prompt, (0,)) for prompt in PROMPTS], Decoding(0.0, 1.0, 8, frozenset({END}))
    )
    for prompt, (answer,) in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        whole = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=0,
            eos_token_id=END,
        )
        assert answer.ids == tuple(whole[0, len(prompt) :].tolist())


@pytest.mark.parametrize("kind", ["phi3", "llama"])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "rows"])
def test_examples_on_both_sides_of_a_switch_have_the_gradient_that_they_have_alone(kind: str, packs: bool) -> None:
    examples = [Example(f"{i}", prompt, (*tokens(3, i), END)) for i, prompt in enumerate(PROMPTS)]
    check_gradients(longrope(kind), examples, packs)


def check_gradients(network: PreTrainedModel, examples: list[Example], packs: bool) -> None:
    """A step on all examples is a step on the sum of their losses, each computed alone and unpadded."""
    trained = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    total = sum(len(example.completion) for example in examples)
    network.zero_grad()
    for example in examples:
        ids = torch.tensor([example.prompt + example.completion[:-1]])  # the last is only predicted
        log_probs = network(ids, use_cache=False).logits[0, len(example.prompt) - 1 :].log_softmax(-1)
        (-log_probs.gather(1, torch.tensor(example.completion).unsqueeze(1)).sum() / total).backward()
    expected = {
        name: trained[name] - 0.05 * weight.grad
        for name, weight in network.named_parameters()
        if weight.grad is not None
    }
    network.zero_grad()
    live: Any = SimpleNamespace(device=CPU, dtype=torch.float64)
    settings = make("full", batch_size=len(examples), packing=packs, learning_rate=0.05)
    loop.train(network, examples, settings, NLL("token"), live, 0, nothing)
    scale = max(float((trained[name] - value).abs().max()) for name, value in expected.items())
    found = {name: weight.detach() for name, weight in network.named_parameters() if name in expected}
    assert scale > 1e-6
    assert_same(found, expected, atol=1e-6 * scale)  # a softmax may be computed in float32


@pytest.mark.usefixtures("exact_norms")
def test_a_prefix_is_computed_as_it_is_within_a_longer_sequence() -> None:
    network, prompt = longrope(), tokens(SWITCH + 5, 0)
    whole, part = DynamicCache(config=network.config), DynamicCache(config=network.config)
    with torch.inference_mode(), lengths.beyond(network, len(prompt)):
        network(torch.tensor([prompt]), past_key_values=whole)
        network(torch.tensor([prompt[:6]]), past_key_values=part)
    for layer, same in zip(whole.layers, part.layers, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :6], same.keys)


def test_lengths_of_a_kind_lie_on_one_side_of_every_switch() -> None:
    two = lengths.Lengths((4, 8))
    assert [two.kind(length) for length in (1, 4, 5, 8, 9, 99)] == [0, 0, 1, 1, 2, 2]
    assert two.groups([9, 4, 5, 1, 8]) == [[0], [1, 3], [2, 4]]
    assert [two.capacity(length, 10) for length in (1, 4, 5, 8, 9)] == [4, 1, 4, 1, 10]
    assert two.capacity(1, 2) == 2
    assert lengths.Lengths().groups([3, 1, 2]) == [[0, 1, 2]]
    assert lengths.Lengths(apart=True).groups([3, 1, 3]) == [[0, 2], [1]]


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, ()),
        ({"rope_type": "llama3", "original_max_position_embeddings": 16}, ()),
        ({"rope_type": "yarn", "original_max_position_embeddings": 16}, ()),
        ({"rope_type": "dynamic", "factor": 2.0}, ()),
        (LONGROPE, (SWITCH,)),
        ({"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}, (SWITCH,)),
        (None, ()),
    ],
)
def test_switches_are_those_of_longrope(rope: dict[str, Any] | None, expected: tuple[int, ...]) -> None:
    text = SimpleNamespace(rope_parameters=rope)
    network: Any = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text))
    assert lengths.switches(network) == expected


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": SWITCH},
        {
            **{"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": SWITCH},
        },
    ],
    ids=["dynamic", "yarn", "llama3"],
)
def test_other_ways_to_reach_long_contexts_have_no_switch_within_the_context(rope: dict[str, Any]) -> None:
    config = AutoConfig.for_model(
        "llama",
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 48, "rope_parameters": rope},
    )
    network, how = build(config), Decoding(1.0, 1.0, 8, frozenset({END}))
    requests = [Request(prompt, (i,)) for i, prompt in enumerate(PROMPTS)]
    assert max(map(len, PROMPTS)) + 8 == 48
    for request, (answer,) in zip(requests, sampled(HF(64), network, requests, how), strict=True):
        assert answer.ids == alone(network, request.prompt, request.keys[0], how)


# Models that cannot be padded

UNPADDED = {
    "bloom": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mpt": MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128),
    "gemma2": Gemma2Config(
        **{"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8},
        sliding_window=9,
    ),
}


@pytest.mark.parametrize("name", UNPADDED)
def test_eager_attention_in_float64_answers_and_learns_without_padding(name: str) -> None:
    """Its masks overflow in a float32 softmax, so fully masked rows are NaN."""
    network, how = build(UNPADDED[name], "eager"), Decoding(0.8, 1.0, 6, frozenset({END}))
    assert not probe.pads(network)
    requests = [Request(prompt, (i, i + 50)) for i, prompt in enumerate(PROMPTS)]
    for request, answers in zip(requests, sampled(HF(64), network, requests, how), strict=True):
        for key, answer in zip(request.keys, answers, strict=True):
            assert answer.ids == alone(network, request.prompt, key, how)
    examples = [Example(f"{i}", prompt, (*tokens(3, i), END)) for i, prompt in enumerate(PROMPTS)]
    check_gradients(network, examples, packs=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_of_other_positions_is_not_packed_though_it_hardly_heeds_them(dtype: torch.dtype) -> None:
    """MPT takes columns for positions, which is wrong in a tree. At initialisation its attention is almost flat."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(UNPADDED["mpt"], attn_implementation="eager").to(dtype).eval()
    assert probe.probe(network, dtype)[0] is None
    if dtype == torch.float64:
        check_gradients(
            network, [Example(f"{i}", prompt, (*tokens(3, i), END)) for i, prompt in enumerate(PROMPTS)], True
        )


def test_a_model_that_reads_padding_as_tokens_is_computed_without(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    assert probe.pads(network)
    forward = type(network).forward

    def unmasked(
        self: nn.Module, *args: Any, attention_mask: object = None, position_ids: object = None, **kwargs: Any
    ) -> Any:
        return forward(self, *args, **kwargs)

    other = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    monkeypatch.setattr(type(network), "forward", unmasked)
    assert not probe.pads(other)
