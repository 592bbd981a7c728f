"""Batch sizes under low memory, and after an out-of-memory error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from sampled import loaded, sampled
from tiny_lm import STOPS, crowded, decoding
from transformers import (
    LlamaForCausalLM,
)

from stasc.engines.engine import Completion, Request
from stasc.engines.hf import decode, memory
from stasc.engines.hf.engine import HF
from stasc.engines.hf.memory import Limit
from stasc.machine import memory as machine_memory
from stasc.machine import processor
from stasc.tracking import fallback


@pytest.fixture
def reported() -> Iterator[list[int]]:
    """The numbers of answers that the journal records as `memory_short`."""
    found: list[int] = []
    with fallback.recording(lambda event, **facts: found.append(facts["rows"])):
        yield found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Simulates memory for 5 samples at once; returns the numbers of samples that were tried."""
    tried: list[int] = []
    whole = decode.sample_batch

    def sample_batch(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *rest: Any) -> list[Completion]:
        tried.append(len(prompts))
        if len(prompts) > 5:
            rest[2](1)  # a sample had ended before the out-of-memory error
            raise torch.OutOfMemoryError("played")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decode, "sample_batch", sample_batch)
    return tried


def test_out_of_memory_halves_the_batch_permanently_and_changes_no_answer(
    model: LlamaForCausalLM, request: pytest.FixtureRequest, reported: list[int]
) -> None:
    requests = [Request(prompt, (seed, seed + 100)) for seed, prompt in enumerate(crowded(2))]
    some = decoding(max_new_tokens=6, stop=STOPS)
    batch = [(r, sample) for r in range(16) for sample in range(2)]
    expected = loaded(HF(64), model).sample(requests, batch, some, lambda k=1: None)
    tried: list[int] = request.getfixturevalue("short")
    ended: list[int] = []
    engine = loaded(HF(64), model)
    assert engine.sample(requests, batch, some, lambda k=1: ended.append(k)) == expected
    assert tried == [32, 16, 8, 4, 4, 4, 4, 4, 4, 4, 4] and reported == [16, 8, 4]
    assert sum(ended) == len(batch)
    tried.clear()
    engine.release()
    assert loaded(engine, model).sample(requests, batch, some, lambda k=1: None) == expected
    assert tried == [4] * 8 and reported == [16, 8, 4]


def test_a_single_answer_that_exceeds_memory_names_the_settings_to_change(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise torch.OutOfMemoryError("played")

    monkeypatch.setattr(decode, "sample_batch", never)
    with pytest.raises(ValueError, match=r"prompt of 2 tokens.*cpu.*sampling\.max_new_tokens"):
        sampled(HF(2), model, [Request((1, 2), (0, 1))], decoding())


def test_the_batch_size_follows_free_memory(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, reported: list[int]
) -> None:
    """The tiny model: 2 layers, and keys and values in float64; each prompt counts once."""
    config = model.config
    token = 2 * 2 * config.num_key_value_heads * config.head_dim * 8
    need = 2 * 3 * token + 9 * (10 * token + 2 * config.vocab_size * 8)
    some = [(1, 2, 3)] * 5 + [(4, 5, 6)] * 4
    assert memory.batch_bytes(model, some, 10) == need
    limit = Limit()

    def rows(free: float) -> int:
        monkeypatch.setattr(memory, "free_bytes", lambda device, enough: free / 0.8)
        return limit.of(model, some, 10)

    assert rows(need + 1) == 9 and not reported
    assert rows(need / 2.5) == 3, "three parts"
    assert rows(need / 1.5) == 5 and reported == [3]
    assert rows(0) == 1
    assert rows(need + 1) == 9, "what was short is free again"
    limit.lower(2)
    assert rows(need + 1) == 2


def test_the_c_library_returns_memory_if_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[bool] = []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 if back else 100))
    monkeypatch.setattr(processor, "release_memory", lambda: back.append(True))
    monkeypatch.setattr(machine_memory, "cgroup_free_bytes", lambda: None)
    assert memory.free_bytes(torch.device("cpu"), 90) == 100 and not back
    assert memory.free_bytes(torch.device("cpu"), 101) == 500 and back


def test_free_memory_is_at_most_what_the_control_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500))
    monkeypatch.setattr(machine_memory, "cgroup_free_bytes", lambda: 300)
    assert memory.free_bytes(torch.device("cpu"), 90) == 300
    monkeypatch.setattr(machine_memory, "cgroup_free_bytes", lambda: 700)
    assert memory.free_bytes(torch.device("cpu"), 90) == 500


def test_a_failed_cpu_allocation_counts_as_out_of_memory_and_no_other_error_does(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode.sample_batch

    def sample_batch(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *rest: Any) -> list[Completion]:
        torch.empty(2**50 if len(prompts) > 2 else 1)  # more bytes than any machine has
        return whole(model, prompts, *rest)

    requests = [Request((1, seed), (0,)) for seed in range(2, 7)]
    expected = sampled(HF(5), model, requests, decoding())
    monkeypatch.setattr(decode, "sample_batch", sample_batch)
    assert sampled(HF(5), model, requests, decoding()) == expected

    def broken(*args: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(decode, "sample_batch", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        sampled(HF(5), model, requests, decoding())


def test_a_last_part_of_one_answer_may_exceed_memory(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, reported: list[int]
) -> None:
    whole = decode.sample_batch

    def sample_batch(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *rest: Any) -> list[Completion]:
        if len(prompts[-1]) > 4:
            raise torch.OutOfMemoryError("played")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decode, "sample_batch", sample_batch)
    requests = [Request(prompt, (0,)) for prompt in ((1, 2), (1, 3), (1, 2, 3, 4, 5))]
    with pytest.raises(ValueError, match="a prompt of 5 tokens"):
        loaded(HF(3), model).sample(requests, [(0, 0), (1, 0), (2, 0)], decoding(), lambda k=1: None)
    assert reported == [1]
