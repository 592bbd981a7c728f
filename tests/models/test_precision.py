"""In 16 bits, prefix sharing and packing cost no precision, pass their trials, and are never lost silently."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from sampled import sampled
from test_run import run_tiny
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stasc import tracking
from stasc.engines.engine import Decoding, Request
from stasc.engines.hf import prefill
from stasc.engines.hf.engine import HF
from stasc.models import precision
from stasc.prefix_tree import attention, probe
from stasc.prefix_tree.trie import Trie
from stasc.tracking import fallback

VOCABULARY = 300


def qwen2(key_bias: float, seed: int = 0) -> Qwen2ForCausalLM:
    """A network with keys as large as in real Qwen2 models, whose key biases reach hundreds."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        **{"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
        tie_word_embeddings=False,
    )
    network = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.k_proj.bias.normal_(0, key_bias)
            layer.self_attn.q_proj.bias.normal_(0, 1)
            layer.self_attn.k_proj.weight.mul_(3)
            layer.self_attn.q_proj.weight.mul_(3)
    return narrowed(network, torch.bfloat16)


def narrowed(network: Qwen2ForCausalLM, dtype: torch.dtype) -> Qwen2ForCausalLM:
    """Casts weights to 16 bits; rotary factors stay in float32, as they do when weights are loaded so."""
    for weight in network.parameters():
        weight.data = weight.data.to(dtype)
    return network


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


PROMPTS = [tokens(12, 0) + tokens(3 + seed % 9, seed) for seed in range(1, 41)]


@torch.inference_mode()
def errors(network: Qwen2ForCausalLM) -> tuple[float, float]:
    """Returns the error of the second token's probabilities against float64, with shared prompts and with rows."""
    wide = Qwen2ForCausalLM(network.config).double().eval()
    wide.load_state_dict(network.state_dict())
    exact = torch.stack([wide(torch.tensor([(*prompt, 7)])).logits[0, -1] for prompt in PROMPTS]).softmax(-1)
    _, _, shared = prefill.prefill(network, PROMPTS, 4, 768)
    _, plain = prefill._padded(network, PROMPTS)
    assert not isinstance(shared, prefill.Padded)

    def error(batch: Any) -> float:
        logits = batch.forward(network, torch.full((len(PROMPTS),), 7)).logits[:, -1]
        return float((logits.double().softmax(-1) - exact).abs().sum(-1).mean())

    return error(shared), error(plain)


def test_sharing_prompts_in_bfloat16_is_as_exact_as_transformers_own_attention() -> None:
    found = [errors(qwen2(30.0, seed)) for seed in range(3)]
    shared, plain = (sum(errors) for errors in zip(*found, strict=True))
    assert shared < 1.05 * plain


def test_scores_of_a_tree_are_not_rounded_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near 300, bfloat16 numbers are two apart: rounding would make scores equal or far apart."""
    trie = Trie()
    trie.add((1, 2, 3, 4))
    layout, mask_NWS = attention.rows(trie)
    torch.manual_seed(0)
    q, k, v = ((x * 16).bfloat16() for x in torch.randn(3, 1, 2, 4, 64))
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found, _ = attention._attention(torch.nn.Identity(), q, k, v, mask_NWS.unsqueeze(1), layout=layout)
        wide = (x.double() for x in (q, k, v))
        exact = torch.nn.functional.scaled_dot_product_attention(*wide, trie.attention_mask())
        torch.testing.assert_close(found.double(), exact.transpose(1, 2), rtol=0.005, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("key_bias", [0.0, 30.0, 100.0])
def test_rounding_costs_neither_sharing_nor_packing(key_bias: float, dtype: torch.dtype) -> None:
    for seed in range(3):
        network = narrowed(qwen2(key_bias, seed), dtype)
        with torch.inference_mode():
            assert prefill._mask(network) == "rows"
        assert probe.probe(network, dtype)[0] == "rows"


def test_a_network_is_widened_while_it_computes_and_is_then_what_it_was() -> None:
    network, ids = qwen2(3.0), torch.tensor([tokens(9, 1)])
    had = {name: (weight.data_ptr(), weight.detach().clone()) for name, weight in network.named_parameters()}
    wide = Qwen2ForCausalLM(network.config).eval()
    wide.load_state_dict(network.state_dict())
    with torch.inference_mode():
        expected = wide(ids).logits
        with precision.widened(network):
            assert torch.equal(network(ids).logits, expected)
        with pytest.raises(IndexError), precision.widened(network):
            network(torch.tensor([[VOCABULARY + 1]]))
    for name, weight in network.named_parameters():
        assert (weight.data_ptr(), weight.dtype) == (had[name][0], torch.bfloat16)
        assert torch.equal(weight, had[name][1])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def softcapped(dtype: torch.dtype, vocabulary: int = VOCABULARY) -> Gemma2ForCausalLM:
    """A network whose attention is more than a softmax of scores."""
    config = Gemma2Config(
        **{"vocab_size": vocabulary, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64},
        attn_logit_softcapping=0.5,
    )
    torch.manual_seed(0)
    return Gemma2ForCausalLM._from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_difference_is_found_in_16_bits_too_and_reported_once(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    network, found = softcapped(dtype), list[tuple[str, str]]()
    how = Decoding(0.0, 1.0, 2, frozenset({0}))
    with fallback.recording(lambda event, **facts: found.append((facts["what"], facts["why"]))):
        for _ in range(2):
            sampled(HF(2), network, [Request(prompt, (0,)) for prompt in PROMPTS[:4]], how)
    ((what, why),) = found
    assert what == "no prefix sharing"
    assert "differs by" in why or "more than a softmax" in why
    assert [record.levelno for record in caplog.records if what in record.getMessage()] == [logging.WARNING]


def test_a_window_shorter_than_an_answer_is_reported(base: str) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)
    network.config.sliding_window = 20
    found: list[str] = []
    with fallback.recording(lambda event, **facts: found.append("{what}: {why}".format(**facts))):
        sampled(HF(2), network, [Request(tuple(range(9)), (0,))], Decoding(0.0, 1.0, 11, frozenset()))
        assert not found
        sampled(HF(2), network, [Request(tuple(range(10)), (0,))], Decoding(0.0, 1.0, 11, frozenset()))
    assert found == ["no prefix sharing: some layers of this model see fewer than the 21 tokens of a prompt and answer"]


def test_an_error_that_says_nothing_about_the_network_is_passed_on(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)

    def raises(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("a fault of ours")

    monkeypatch.setattr(type(network), "forward", raises)
    with pytest.raises(AssertionError, match="ours"):
        probe.probe(network, torch.float32)


def test_a_run_records_once_what_it_cannot_share(base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    softcapped(torch.float32, 260).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "model")
    run_tiny(tmp_path / "run", "model=custom", f"model.path={tmp_path / 'model'}", "iterations=1", "filter=all")
    events = [event for event in tracking.read(tmp_path / "run" / "journal.jsonl") if event["event"] == "fallback"]
    assert [event["what"] for event in events] == ["no prefix sharing", "no packing"]
    assert all(event["why"] for event in events)
    for event in events:
        assert sum(event["what"] in record.getMessage() for record in caplog.records) == 1
