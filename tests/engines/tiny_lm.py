"""A tiny random Llama, its prompts, and what follows them by plain forward passes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
)

from stasc.engines.engine import Decoding

VOCABULARY = 260

CONTEXT = 2048


def load(folder: str, dtype: torch.dtype) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCABULARY), k=count))


def prompts(lengths: Sequence[int], shared: int = 0) -> list[tuple[int, ...]]:
    """One prompt per length, of random tokens behind `shared` tokens that they have in common."""
    return [tokens(shared, 0) + tokens(length, seed) for seed, length in enumerate(lengths, start=1)]


def decoding(
    temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int = 8, stop: Sequence[int] = ()
) -> Decoding:
    return Decoding(temperature, top_p, max_new_tokens, frozenset(stop))


def next_logits(model: LlamaForCausalLM, prompt: Sequence[int]) -> Tensor:
    """Returns the next-token logits of a prompt, by one plain forward pass over it alone."""
    with torch.inference_mode():
        return model(torch.tensor([prompt], device=model.device)).logits[0, -1]


MIXED = [*prompts([1, 2, 3, 5, 8, 8, 13, 30], shared=6), tokens(6, 0), (*tokens(6, 0), 7, 7)]

STOPS = tuple(range(0, VOCABULARY, 9))  # 29 of 260: some answers end early, some at once, some never


def crowded(seed: int) -> list[tuple[int, ...]]:
    """Prompts that share beginnings of all lengths; some are the beginning of others, some equal."""
    draw = random.Random(seed)
    system = tuple(draw.choices(range(VOCABULARY), k=draw.randint(0, 6)))
    some = [system + tuple(draw.choices((7, 8), k=draw.randint(1, 14))) for _ in range(40)]
    return [*some, *draw.sample(some, 3), *(prompt[:-1] for prompt in draw.sample(some, 3) if len(prompt) > 1)]
