"""Converted GGUF files of several families keep tokenizer, template, end of turn and positions.

The files are written here as llama.cpp's converter does; what is expected of them is worked out by hand.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from test_model import config
from test_sources import interleaved
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stasc.models import dequantise, sources
from stasc.models.chat import Chat
from stasc.models.config import load_chat

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
THETA = 500.0
SIZES: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "rms_norm_eps": 1e-5},
}
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "Ġ w", "1 2", "12 3"]
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LAYER = {
    **{"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"},
    **{"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate"},
    **{"mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm"},
    **{"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
}
LAYER_OF_GEMMA = {
    **{"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"},
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True)
class Family:
    """A family of models, with its tokens as a GGUF file lists them."""

    architecture: str
    tokenizer: str
    pre: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    special: dict[str, str]  # bos, eos, eot, pad and unk, by their names in the file
    template: str
    adds_bos: bool
    network: Callable[[int], PreTrainedModel]
    turn: Sequence[str]  # what the prompt of "hello" ends with
    end: str

    def id(self, token: str) -> int:
        return self.tokens.index(token)


def byte_level(control: Sequence[str]) -> tuple[list[str], list[int]]:
    words = [*BYTES, *(merge.replace(" ", "") for merge in MERGES)]
    return [*words, *control], [NORMAL] * len(words) + [CONTROL] * len(control)


def sentence_pieces(control: Sequence[str]) -> tuple[list[str], list[int]]:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!:;'\n"
    words = ["  ", "   ", "▁", *letters, "he", "ll"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *control, *(f"<0x{i:02X}>" for i in range(256)), *words]
    kinds = [CONTROL] * 3 + [UNKNOWN] + [CONTROL] * len(control) + [BYTE] * 256 + [NORMAL] * len(words)
    return tokens, kinds


FAMILIES = {
    "llama 3": Family(
        *("llama", "gpt2", "llama-bpe"),
        *byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
        special={"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>", "eot": "<|eot_id|>"},
        template=LLAMA_3,
        adds_bos=True,
        network=lambda n: LlamaForCausalLM(LlamaConfig(vocab_size=n, rope_theta=THETA, **SIZES)),
        turn=["he", "ll", "o", "<|eot_id|>", "<|start_header_id|>", *"assistant", "<|end_header_id|>", "Ċ", "Ċ"],
        end="<|eot_id|>",
    ),
    "qwen 2.5": Family(
        *("qwen2", "gpt2", "qwen2"),
        *byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
        special={"bos": "<|endoftext|>", "eos": "<|im_end|>", "pad": "<|endoftext|>"},
        template=CHATML,
        adds_bos=False,
        network=lambda n: Qwen2ForCausalLM(
            Qwen2Config(vocab_size=n, rope_theta=THETA, tie_word_embeddings=True, **SIZES)
        ),
        turn=["he", "ll", "o", "<|im_end|>", "Ċ", "<|im_start|>", *"assistant", "Ċ"],
        end="<|im_end|>",
    ),
    "gemma 3": Family(
        *("gemma3", "llama", "default"),
        *sentence_pieces(["<start_of_turn>", "<end_of_turn>"]),
        special={"bos": "<bos>", "eos": "<eos>", "eot": "<end_of_turn>", "pad": "<pad>", "unk": "<unk>"},
        template=GEMMA,
        adds_bos=True,
        network=lambda n: Gemma3ForCausalLM(
            Gemma3TextConfig(vocab_size=n, rope_theta=THETA, head_dim=8, sliding_window=64, **SIZES)
        ),
        turn=["he", "ll", "o", "<end_of_turn>", "\n", "<start_of_turn>", *"model", "\n"],
        end="<end_of_turn>",
    ),
}
each_family = pytest.mark.parametrize("name", FAMILIES)


def gguf_name(name: str, architecture: str) -> str:
    part, _, kind = name.rpartition(".")
    if part.startswith("model.layers."):
        _, _, layer, part = part.split(".", 3)
        return f"blk.{layer}.{(LAYER | LAYER_OF_GEMMA if architecture == 'gemma3' else LAYER)[part]}.{kind}"
    return f"{OUTER[part]}.{kind}"


def write(
    path: Path,
    family: Family,
    *,
    template: bool = True,
    kinds: dict[str, int] | None = None,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> PreTrainedModel:
    """Writes a model with random weights to a GGUF file; `kinds` overrides the types of some tokens."""
    torch.manual_seed(0)
    model = family.network(len(family.tokens)).eval()
    settings, writer = model.config, gguf.GGUFWriter(path, family.architecture)
    writer.add_context_length(settings.max_position_embeddings)
    writer.add_block_count(settings.num_hidden_layers)
    writer.add_embedding_length(settings.hidden_size)
    writer.add_feed_forward_length(settings.intermediate_size)
    writer.add_head_count(settings.num_attention_heads)
    writer.add_head_count_kv(settings.num_key_value_heads)
    writer.add_layer_norm_rms_eps(settings.rms_norm_eps)
    writer.add_rope_freq_base(THETA)
    writer.add_vocab_size(len(family.tokens))
    if family.architecture == "gemma3":
        writer.add_key_length(settings.head_dim)
        writer.add_sliding_window(settings.sliding_window)
    else:
        writer.add_rope_dimension_count(settings.hidden_size // settings.num_attention_heads)
    writer.add_tokenizer_model(family.tokenizer)
    writer.add_tokenizer_pre(family.pre)
    writer.add_token_list(family.tokens)
    marked = zip(family.tokens, family.kinds, strict=True)
    writer.add_token_types([(kinds or {}).get(token, kind) for token, kind in marked])
    if family.tokenizer == "gpt2":
        writer.add_token_merges(MERGES)
    else:
        writer.add_token_scores([-float(i) for i in range(len(family.tokens))])
    for role, token in family.special.items():
        getattr(writer, f"add_{role}_token_id")(family.id(token))
    writer.add_add_bos_token(family.adds_bos)
    if template:
        writer.add_chat_template(family.template)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and settings.tie_word_embeddings:
            continue
        array = weight.numpy()
        if family.architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = settings.num_attention_heads if "q_proj" in name else settings.num_key_value_heads
            array = interleaved(array, heads)
        if family.architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + 1  # llama.cpp multiplies by it, transformers by one more
        writer.add_tensor(gguf_name(name, family.architecture), np.ascontiguousarray(array))
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, str]]:
    """Returns a family's model and the folder converted from its file."""
    place, known = tmp_path_factory.mktemp("gguf"), dict[str, tuple[PreTrainedModel, str]]()

    def make(name: str) -> tuple[PreTrainedModel, str]:
        if name not in known:
            file = place / f"{name.replace(' ', '-')}.gguf"
            model = write(file, FAMILIES[name])
            known[name] = (model, sources.fetch(str(file), place / "cache"))
        return known[name]

    return make


def chat_of(folder: str) -> Chat:
    return load_chat(config(folder), folder)


# Each family


@each_family
def test_the_weights_and_positions_are_those_of_the_model(name: str, made: Any) -> None:
    model, folder = made(name)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is type(model)
    for key, weight in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], weight, rtol=0, atol=1e-6)
    ids = torch.arange(4, 204, 3)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=0, atol=1e-4)


@each_family
def test_text_is_cut_as_the_family_cuts_it(name: str, made: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made(name)[1])

    def cut(text: str) -> list[str]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        return tokenizer.convert_ids_to_tokens(ids)

    numbers = {"llama 3": ["123", "4"], "qwen 2.5": [*"1234"], "gemma 3": [*"1234"]}  # of up to three digits, or of one
    assert cut("1234") == numbers[name]
    space, line = ("▁", "\n") if name == "gemma 3" else ("Ġ", "Ċ")
    assert cut("hello") == ["he", "ll", "o"]
    assert cut(" hello") == [space, "he", "ll", "o"]
    assert cut("a\n\nb") == ["a", line, line, "b"]
    cut("naïve 🙂  two\ttabs")


@each_family
def test_an_answer_begins_and_ends_as_the_template_writes_it(name: str, made: Any) -> None:
    family, chat = FAMILIES[name], chat_of(made(name)[1])
    conversation = [{"role": "user", "content": "hello"}]
    prompt, turn = chat.prompt(conversation), [family.id(token) for token in family.turn]
    assert list(prompt[-len(turn) :]) == turn
    begins = [family.id(family.special["bos"])] if family.adds_bos else [family.id("<|im_start|>")]
    assert list(prompt[:1]) == begins
    assert prompt.count(family.id(family.special["bos"])) == family.adds_bos
    assert chat.completion(conversation, "he") == (family.id("he"), family.id(family.end))
    assert chat.end_id == family.id(family.end)
    assert chat.stop_ids == {family.id(family.end), family.id(family.special["eos"])}


@each_family
def test_generation_stops_where_answers_end(name: str, made: Any) -> None:
    family, folder = FAMILIES[name], made(name)[1]
    eos = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    assert family.id(family.end) in (eos if isinstance(eos, list) else [eos])


@each_family
@pytest.mark.parametrize("kind", [USER_DEFINED, NORMAL])
def test_an_end_of_turn_that_a_converter_calls_a_word_ends_answers_all_the_same(
    name: str, kind: int, tmp_path: Path
) -> None:
    family, file = FAMILIES[name], tmp_path / "small.gguf"
    write(file, family, kinds={family.end: kind})
    chat = chat_of(sources.fetch(str(file), tmp_path / "cache"))
    assert chat.end_id == family.id(family.end)
    assert chat.completion([{"role": "user", "content": "hello"}], "he") == (family.id("he"), chat.end_id)
    assert chat.decode([family.id("he"), chat.end_id]) == "he"


# What is refused from the header


@each_family
def test_a_missing_template_is_reported_before_any_weight_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "base.gguf"
    write(file, FAMILIES[name], template=False)
    with monkeypatch.context() as patch:
        patch.setattr(dequantise, "_load", lambda file: pytest.fail("read"))
        with pytest.raises(
            ValueError, match=r"^model\.path: base\.gguf has no chat template.*model\.chat_template=plain"
        ):
            config(file, cache=str(tmp_path / "cache")).fetch()
    assert list((tmp_path / "cache").iterdir()) == []
    plain = config(file, "plain", cache=str(tmp_path / "cache"))
    chat = load_chat(plain, plain.fetch())
    assert chat.decode(chat.prompt([{"role": "user", "content": "hello"}])) == "Question: hello\nAnswer:"


def test_a_token_of_the_template_that_is_cut_into_pieces_is_named(tmp_path: Path) -> None:
    """transformers takes such letters in control tokens, as in DeepSeek's, for a converter's fault."""
    special = ["<|endoftext|>", "<｜User｜>", "<|im_end|>"]
    tokens, kinds = byte_level(special)
    qwen = FAMILIES["qwen 2.5"]
    changes = {"tokens": tokens, "kinds": kinds, "template": "{{ '<｜User｜>' }}" + CHATML}
    family = Family(**{**{name: getattr(qwen, name) for name in Family.__dataclass_fields__}, **changes})
    write(tmp_path / "odd.gguf", family)
    said = rf"model\.path: odd\.gguf has <｜User｜> as token {family.id('<｜User｜>')}, which transformers reads as \["
    with pytest.raises(ValueError, match=said):
        sources.fetch(str(tmp_path / "odd.gguf"), tmp_path / "cache")


# Scaled positions


def divisors(factor: float, original: int = 8192) -> list[float]:
    """Returns Llama 3.1's divisor of each frequency, as llama.cpp's converter computes it."""
    found = []
    for i in range(4):  # of a head of 8
        length = 2 * math.pi * THETA ** (i / 4)
        smooth = (original / length - 1.0) / (4.0 - 1.0)
        found.append(1.0 if smooth > 1 else factor if smooth < 0 else 1 / ((1 - smooth) / factor + smooth))
    return found


def with_table(values: Sequence[float]) -> Callable[[gguf.GGUFWriter], None]:
    return lambda writer: writer.add_tensor("rope_freqs.weight", np.array(values, dtype=np.float32))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaled_positions_of_llama_3_1_are_read(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny model's wavelengths are short, so its original context is shortened too."""
    monkeypatch.setitem(dequantise._LLAMA3, "original_max_position_embeddings", 256)
    table = divisors(factor, 256)
    assert min(table) == 1 < max(table) == factor
    write(tmp_path / "small.gguf", FAMILIES["llama 3"], more=with_table(table))
    folder = sources.fetch(str(tmp_path / "small.gguf"), tmp_path / "cache")
    rope = AutoConfig.from_pretrained(folder).rope_parameters
    expected = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert rope == {**expected, "rope_theta": THETA, "original_max_position_embeddings": 256}
    frequencies = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq
    plain = torch.tensor([THETA ** -(i / 4) for i in range(4)])
    torch.testing.assert_close(frequencies, plain / torch.tensor(table))


def test_a_table_that_scales_nothing_leaves_positions_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", FAMILIES["llama 3"], more=with_table([1.0] * 4))
    folder = sources.fetch(str(tmp_path / "small.gguf"), tmp_path / "cache")
    assert AutoConfig.from_pretrained(folder).rope_parameters == {"rope_type": "default", "rope_theta": THETA}


def test_the_linear_scaling_of_large_gemma_3_is_read_for_its_global_layers(tmp_path: Path) -> None:
    def more(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(8.0)

    write(tmp_path / "small.gguf", FAMILIES["gemma 3"], more=more)
    rope = AutoConfig.from_pretrained(sources.fetch(str(tmp_path / "small.gguf"), tmp_path / "cache")).rope_parameters
    assert rope["full_attention"] == {"rope_type": "linear", "factor": 8.0, "rope_theta": THETA}
    assert rope["sliding_attention"] == {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (with_table([1.0, 2.0, 3.0, 4.0]), r"scales positions otherwise than Llama 3\.1 and 3\.2 do"),
        (
            lambda writer: writer.add_tensor("rope_factors_short.weight", np.full(4, 2, dtype=np.float32)),
            r"scales positions \(rope_factors_short\.weight\), which transformers does not read",
        ),
        (
            lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
            r"scales positions \(yarn\), which transformers does not read",
        ),
    ],
)
def test_positions_that_are_scaled_otherwise_are_refused(
    more: Callable[[gguf.GGUFWriter], None], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "small.gguf", FAMILIES["llama 3"], more=more)
    with pytest.raises(ValueError, match=rf"model\.path: small\.gguf {said}.*: take the model as safetensors"):
        sources.fetch(str(tmp_path / "small.gguf"), tmp_path / "cache")


def test_what_earlier_versions_made_of_a_file_is_made_anew(tmp_path: Path) -> None:
    write(tmp_path / "small.gguf", FAMILIES["qwen 2.5"])
    folder = Path(sources.fetch(str(tmp_path / "small.gguf"), tmp_path / "cache"))
    old = folder.with_name(folder.name.rpartition("-")[0])
    shutil.move(folder, old)
    (old / "config.json").write_text(json.dumps({"model_type": "old"}))
    again = sources.fetch(str(tmp_path / "small.gguf"), tmp_path / "cache")
    assert AutoConfig.from_pretrained(again).model_type == "qwen2"
