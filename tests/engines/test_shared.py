"""Sequences that share the KV cache of their prompts, against plain forward passes."""

from __future__ import annotations

import pytest
import torch
from tiny_lm import next_logits, prompts
from transformers import (
    LlamaForCausalLM,
)

from stasc.engines.hf import prefill, shared


@torch.inference_mode()
def test_a_prompt_is_cached_once_and_dropped_with_its_last_sequence(model: LlamaForCausalLM) -> None:
    some = [prompt for prompt in prompts([5, 6, 7, 8], shared=3) for _ in range(5)]
    _, _, batch = prefill.prefill(model, some, 4, 100)
    assert isinstance(batch, shared.SharedPrompts)

    def held() -> list[tuple[int, ...]]:
        return [tuple(part.layers[0].keys.shape[::2]) for part in (batch._prefix, batch._prompts)]

    assert held() == [(1, 3), (4, 8)]
    batch.select(torch.tensor([0, 1, 1, 2, 3]))
    assert held() == [(1, 3), (4, 8)]
    batch.select(torch.tensor([1, 3, 3]))
    assert held() == [(1, 3), (2, 8)]


@pytest.mark.parametrize(
    "lines, times, most",
    [
        ([5, 5, 5], [1, 1, 1], 5),
        ([64, *[1] * 40], [64, *[1] * 40], 1),  # 104 products of 4 beat 41 of 67
        ([4, *[2] * 30], [2, *[1] * 30], 2),
        ([16, 8], [2, 1], 8),  # 3 of 11 beat 2 of 19
    ],
)
def test_a_prompt_of_many_sequences_is_copied_if_that_costs_less(lines: list[int], times: list[int], most: int) -> None:
    assert shared.copies(lines) == (times, most)


def test_logits_are_the_same_if_one_prompt_has_far_more_sequences(model: LlamaForCausalLM) -> None:
    some = [(7, 8, 3), (7, 8, 5, 9), *prompts([3, 6, 4, 5, 8], shared=2)]
    with torch.inference_mode():
        _, _, batch = prefill.prefill(model, some, 4, 100)
        assert isinstance(batch, shared.SharedPrompts)
        rows = some
        for going, held in (([0, *[1] * 12, 2, 3, 4, 5, 6], 18), (range(2, 18), 16), ([10, 9, 0, 0], 1)):
            batch.select(torch.tensor(going))
            assert len(batch._lengths_P) == held
            rows = [(*rows[index], 6) for index in going]
            logits_SV = batch.forward(model, torch.full((len(rows),), 6)).logits[:, -1]
            for row, whole in zip(logits_SV, rows, strict=True):
                torch.testing.assert_close(row, next_logits(model, whole), rtol=0, atol=1e-10)


@torch.inference_mode()
def test_copies_do_not_pile_up_when_prompts_branch_one_after_the_other(
    model: LlamaForCausalLM,
) -> None:
    some = prompts([4] * 8, shared=2)
    _, _, batch = prefill.prefill(model, some, 4, 100)
    assert isinstance(batch, shared.SharedPrompts)
    rows, most = some, 0
    for prompt in range(8):  # each grows to 16 sequences
        going = [*range(len(rows)), *[prompt] * 15]
        batch.select(torch.tensor(going))
        rows = [rows[index] for index in going]
        assert {int(batch._original_P[p]) for p in batch._prompt_S} == set(range(8))
        most = max(most, len(batch._lengths_P))
    assert most < 40 and len(batch._lengths_P) < 12
    logits_SV = batch.forward(model, torch.full((len(rows),), 6)).logits[:, -1]
    for row, whole in zip(logits_SV, rows, strict=True):
        torch.testing.assert_close(row, next_logits(model, (*whole, 6)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sinks", "position_bias", "head_mask", "block_indices"])
def test_attention_with_more_than_a_softmax_of_scores_is_refused(name: str) -> None:
    parts = [torch.zeros(1, 1, 1, 4) for _ in range(3)]
    with pytest.raises(ValueError, match="more than a softmax"):
        shared._attention(torch.nn.Identity(), *parts, None, **{name: torch.zeros(1)})
