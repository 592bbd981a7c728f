"""Makes a tiny model with random weights in a second, for tests and first trials."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TINY_WORDS = ("Africa", "Pound")  # a continent and a currency; no letter occurs twice, so each has one successor
TINY_LEANING = 2.0  # the weight that makes a successor likely


def make(seed: int, folder: Path, *, words: bool) -> None:
    """Writes a 2-layer Llama with random weights, a byte-level tokenizer and a ChatML-like template.

    With `words`, the model tends to answer one of TINY_WORDS to any question, so that it is sometimes right.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokens = {token: id_ for id_, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", additional_special_tokens=special[1:]
    )
    fast.chat_template = (
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokens["<|end|>"],
        pad_token_id=tokens["<|end|>"],
        bos_token_id=None,
        initializer_range=0.1 if words else 0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LlamaForCausalLM(config)
    if words:
        _lean(network, tokens)
    network.save_pretrained(folder)
    fast.save_pretrained(folder)


def _lean(network: LlamaForCausalLM, tokens: Mapping[str, int]) -> None:
    """Makes each of TINY_WORDS likely: one hidden dimension per letter marks it as the last token."""
    spelling = [["<|assistant|>", *word, "<|end|>"] for word in TINY_WORDS]
    steps = [step for letters in spelling for step in itertools.pairwise(letters)]
    dimension = {before: i for i, before in enumerate(dict.fromkeys(before for before, _ in steps))}
    with torch.no_grad():
        for before, after in steps:
            network.model.embed_tokens.weight[tokens[before], dimension[before]] = TINY_LEANING
            network.lm_head.weight[tokens[after], dimension[before]] = TINY_LEANING
