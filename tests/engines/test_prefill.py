"""The prefill, against plain forward passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sampled import sampled
from tiny_lm import VOCABULARY, crowded, decoding, load, next_logits, prompts, tokens
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
)

from stasc.engines.engine import Request
from stasc.engines.hf import prefill, shared
from stasc.engines.hf.engine import HF
from stasc.prefix_tree import probe


@pytest.mark.parametrize(
    "some",
    [
        prompts([1, 2, 3, 5, 8, 30], shared=6),
        prompts([4, 9, 2, 7]),
        [tokens(12, 1)] * 5,
        [tokens(1, 1)],
        [tokens(1, 1), (*tokens(1, 1), 5), (*tokens(1, 1), 5, 6, 7)],
        [tokens(9, 1), tokens(9, 1)[:4], (*tokens(9, 1)[:8], 0), tokens(9, 1)],
        [(0,) * 3, (0,) * 9],
    ],
    ids=["common prefix", "no common prefix", "one prompt", "one token", "one token shared", "prefixes", "zeros"],
)
def test_the_logits_of_a_prefill_are_those_of_a_plain_forward_pass(
    model: LlamaForCausalLM, some: list[tuple[int, ...]]
) -> None:
    with torch.inference_mode():
        logits_SV, lines, _ = prefill.prefill(model, some, 0, 50)
    assert len(logits_SV) == len(set(some))
    for row, prompt in zip(logits_SV[lines], some, strict=True):
        torch.testing.assert_close(row, next_logits(model, prompt), rtol=0, atol=1e-10)


def test_a_sequence_longer_than_an_attention_window_is_left_to_transformers() -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=20)
    network: Any = SimpleNamespace(config=config)
    assert probe.attends_to_all(network, 20)
    assert not probe.attends_to_all(network, 21)


def test_a_forward_pass_has_at_most_max_tokens_or_one_prompt(
    model: LlamaForCausalLM, shapes: list[tuple[int, ...]]
) -> None:
    some = [(1, 10 + length, *tokens(length, 0)) for length in (2, 1, 4, 5, 20, 9)]
    with torch.inference_mode():
        prefill.prefill(model, some, 0, 12)
    assert shapes == [(1, 1), (1, 10), (1, 6), (1, 10), (1, 21)]


@pytest.mark.parametrize("most_tokens", [1, 40, 10**6])
@pytest.mark.parametrize("kind", ["sdpa", "sdpa without rows", "eager", "flex_attention"])
def test_every_attention_and_pass_size_gives_the_logits_of_plain_forward_passes(
    kind: str, most_tokens: int, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "sdpa without rows":
        kind = "sdpa"
        monkeypatch.setattr(prefill, "_mask", lambda model: torch.bool)
    dtype = torch.float64 if kind == "sdpa" else torch.float32  # eager attention pads with nan in float64
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=kind).eval()
    for seed in range(3):
        some = crowded(seed)
        close = {"rtol": 0, "atol": 1e-10} if kind == "sdpa" else {"rtol": 1e-4, "atol": 1e-4}
        with torch.compiler.set_stance("force_eager"), torch.inference_mode():
            logits_SV, lines, batch = prefill.prefill(network, some, 4, most_tokens)
            assert isinstance(batch, shared.SharedPrompts)
            for row, prompt in zip(logits_SV[lines], some, strict=True):
                torch.testing.assert_close(row, next_logits(network, prompt), **close)
            rows = list(dict.fromkeys(some))
            for step, gone in enumerate((0, 3, 30)):  # so many sequences end; prompts are dropped with their last one
                going = [index for index in range(len(rows)) if index >= gone or (index % 2 and gone < 4)]
                going += going[-6:]  # and some branch
                batch.select(torch.tensor(going))
                rows = [(*rows[index], 7 + (index + step) % 2) for index in going]
                logits_SV = batch.forward(network, torch.tensor([row[-1] for row in rows])).logits[:, -1]
                for row, whole in zip(logits_SV, rows, strict=True):
                    torch.testing.assert_close(row, next_logits(network, whole), **close)


def test_a_model_with_other_attention_runs_without_prefix_sharing(folder: str) -> None:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=64,
        attn_logit_softcapping=0.5,
    )
    network = Gemma2ForCausalLM._from_config(config, dtype=torch.float32).eval()  # eager: nan in float64
    requests = [Request(prompt, (seed, seed + 50)) for seed, prompt in enumerate(prompts([4, 9, 2, 7], shared=4))]
    found = sampled(HF(8), network, requests, decoding(max_new_tokens=6))
    with torch.inference_mode():
        assert prefill._mask(network) is None
    alone = [sampled(HF(1), network, [request], decoding(max_new_tokens=6))[0] for request in requests]
    assert found == alone


def test_out_of_memory_in_a_probe_is_raised_and_not_remembered(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(folder, torch.float32)
    with monkeypatch.context() as played, torch.inference_mode():

        def raises(*args: object, **kwargs: object) -> None:
            raise torch.OutOfMemoryError("played")

        played.setattr(type(network), "forward", raises)
        with pytest.raises(torch.OutOfMemoryError):
            prefill.shares(network)
    with torch.inference_mode():
        assert prefill.shares(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prompts_are_shared_in_every_dtype(folder: str, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        assert prefill._mask(load(folder, dtype)) == "rows"


def test_answers_without_prefix_sharing_are_the_same(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(prompt, (seed, seed + 100)) for seed, prompt in enumerate(crowded(1))]
    expected = sampled(HF(16), model, requests, decoding(max_new_tokens=5))
    monkeypatch.setattr(prefill, "_mask", lambda model: None)
    assert sampled(HF(16), model, requests, decoding(max_new_tokens=5)) == expected
