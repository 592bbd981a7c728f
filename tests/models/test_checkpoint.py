"""Unusable models are refused before any weights are read, with the setting's name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_model import config, live, random_adapter, rewrite
from test_run import EARNABLE, experiment, run_tiny
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    MambaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RwkvConfig,
    T5Config,
)

from stasc.models import checkpoint, sources
from stasc.models.chat import Chat
from stasc.models.config import load_chat
from stasc.models.model import M_0
from stasc.runs.execute import run
from stasc.runs.prepare import prepare
from stasc.tracking.console import Console

SIZES: dict[str, Any] = {
    **{"vocab_size": 260, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    "num_attention_heads": 4,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("models"))


@pytest.fixture
def model(base: str, tmp_path: Path) -> Path:
    """Returns a copy of the tiny model."""
    return Path(shutil.copytree(base, tmp_path / "model"))


def replace_model(folder: Path, network: PreTrainedModel) -> None:
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder)


def refusal(folder: Path, method: str = "full") -> str:
    """Returns the one-line error of checking a folder; weights are not read."""
    with pytest.raises((ValueError, OSError)) as raised:
        prepare(experiment("model=custom", f"model.path={folder}", f"finetune={method}"))
    message = str(raised.value)
    assert message.startswith(f"model.path={folder}: ")
    assert "\n" not in message
    return message.partition(": ")[2]


# Kinds of models


@pytest.mark.parametrize("kind", [MambaConfig, Mamba2Config, RwkvConfig])
def test_a_model_without_attention_is_refused(kind: type[PreTrainedConfig], model: Path) -> None:
    kind(architectures=["ForCausalLM"]).save_pretrained(model)
    assert "has no attention, which sampling relies on: take a model with attention" in refusal(model)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_model_that_is_no_causal_language_model_is_refused(method: str, model: Path) -> None:
    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(model)
    assert "t5 is not a causal language model: take a decoder-only one" in refusal(model, method)


def test_an_encoder_is_refused_and_a_decoder_with_the_same_setting_is_not(model: Path) -> None:
    replace_model(model, BertForMaskedLM(BertConfig(**SIZES)))
    assert "bert is not a causal language model" in refusal(model)
    replace_model(model, GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)))
    assert AutoModelForCausalLM.from_pretrained(model).config.is_decoder is False
    assert checkpoint.check(config(model), str(model), full=True, four_bit=False).model_type == "gpt_neox"


def test_an_adapter_is_named_with_its_base(base: str, model: Path) -> None:
    """With or without a whole model beside the adapter: transformers would load the adapter's base instead."""
    random_adapter(base, 1, model)
    rewrite(model / "adapter_config.json", base_model_name_or_path="Org/Name")
    for _ in range(2):
        message = refusal(model)
        assert "it is an adapter of Org/Name, expected a whole model" in message
        assert "merge_and_unload() of peft, then save_pretrained), or set model.path to that model" in message
        (model / "config.json").unlink(missing_ok=True)


# Files


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_shard(folder: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    network.save_pretrained(folder, max_shard_size="50KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, r"model\.safetensors is cut off or damaged \(.*\): download the model again"),
        (lose_a_shard, r"model-00002-of-0000\d\.safetensors, which the index names, is not in"),
        (lambda f: (f / "model.safetensors").rename(f / "x.safetensors"), "neither model.safetensors nor its index"),
        (lambda f: (f / "config.json").unlink(), r"no config\.json in .*: expected a whole model"),
        (lambda f: (f / "config.json").write_text("{"), "is not a valid JSON file"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "its tokenizer cannot be read"),
        (
            lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
            "its tokenizer cannot be read",
        ),
    ],
)
def test_files_that_are_damaged_or_missing_are_named(damage: Callable[[Path], None], said: str, model: Path) -> None:
    damage(model)
    assert re.search(said, refusal(model))


# config.json and the weights


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("vocab_size", 264, r"(lm_head|model\.embed_tokens)\.weight is 260x32 where config\.json says 264x32"),
        ("intermediate_size", 96, r"model\.layers\.0\.mlp\.down_proj\.weight is 32x64 where config\.json says 32x96"),
        (
            "num_hidden_layers",
            1,
            r"no layer of config\.json has model\.layers\.1\.input_layernorm\.weight; correct num",
        ),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(
    setting: str, value: int, said: str, four_bit: bool, model: Path
) -> None:
    rewrite(model / "config.json", **{setting: value})
    with pytest.raises(ValueError, match=rf"model\.path: config\.json of {model} does not fit its weights: {said}"):
        live(str(model), four_bit=four_bit).load(M_0)


# Weights that are stored in few bits


@pytest.fixture(scope="module")
def prequantised(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with weights in NF4, as unsloth and others publish them."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("prequantised") / "model"))
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 256, "eos_token_id": 0, "pad_token_id": 0}
    replace_model(folder, LlamaForCausalLM(LlamaConfig(**sizes, bos_token_id=None)))
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    AutoModelForCausalLM.from_pretrained(folder, quantization_config=four).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_are_trained_on_weights_that_are_stored_in_4_bits(
    method: str, prequantised: Path, tmp_path: Path
) -> None:
    summary = run_tiny(
        tmp_path / "run",
        "model=custom",
        f"model.path={prequantised}",
        f"finetune={method}",
        "filter=all",
        "iterations=1",
    )
    assert summary["status"] == "finished"
    assert load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")


def test_m_0_that_is_stored_in_4_bits_is_what_transformers_reads(prequantised: Path) -> None:
    ids = torch.arange(4, 260, 3)[None]
    network = AutoModelForCausalLM.from_pretrained(prequantised)
    for module in network.modules():
        module.support_avx512bf16_for_cpu = False  # which rounds once more
    with torch.inference_mode():
        expected = network(ids).logits
        assert torch.equal(live(str(prequantised)).load(M_0)(ids).logits, expected)


def test_weights_that_are_stored_in_few_bits_are_refused_where_they_cannot_be_trained(
    prequantised: Path, model: Path
) -> None:
    assert "stored in 4 bits, which finetune=full cannot train: take finetune=lora" in refusal(prequantised)
    rewrite(model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "stored in 8 bits, and finetune=qlora needs 4: take finetune=lora" in refusal(model, "qlora")
    for stored in ("gptq", "awq", "fp8", "mxfp4"):
        rewrite(model / "config.json", quantization_config={"quant_method": stored})
        for method in ("full", "lora", "qlora"):
            assert f"its weights are quantised by {stored}, and only bitsandbytes" in refusal(model, method)


# Tokens that the model has no embedding of


def add_tokens(folder: Path, *tokens: str, template: str | None = None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.save_pretrained(folder)


def test_a_token_of_the_template_without_an_embedding_is_named(base: str, model: Path) -> None:
    template = AutoTokenizer.from_pretrained(base).chat_template
    add_tokens(model, "<|turn|>", template="<|turn|>" + template)
    said = r"the chat template writes <|turn|>, token 260, and the model has embeddings for 260 tokens: save it after"
    assert said in refusal(model)


def test_a_token_without_an_embedding_that_no_template_writes_is_text(base: str, model: Path, tmp_path: Path) -> None:
    """As the <pad> that some add to Llama 2; an answer may contain it."""
    add_tokens(model, "<pad>")
    prepared = prepare(experiment("model=custom", f"model.path={model}"))
    asked = [{"role": "user", "content": "What is <pad>?"}]
    plain = load_chat(config(base), base)
    assert prepared.chat.prompt(asked) == plain.prompt(asked)
    assert prepared.chat.completion(asked, "a <pad>.") == plain.completion(asked, "a <pad>.")
    assert max(Chat(AutoTokenizer.from_pretrained(model), None, {}).prompt(asked)) == 260


def test_a_tokenizer_of_another_model_with_more_words_is_refused(model: Path) -> None:
    state = json.loads((model / "tokenizer.json").read_text())
    state["model"]["vocab"]["ab"] = 260
    (model / "tokenizer.json").write_text(json.dumps(state))
    assert "the tokenizer has 1 tokens beyond the model's 260 embeddings, e.g. 'ab'" in refusal(model)


def test_nothing_is_sampled_with_a_model_that_is_refused(model: Path, tmp_path: Path) -> None:
    rewrite(model / "config.json", vocab_size=264)
    (tmp_path / "run").mkdir()
    built = experiment(*EARNABLE, "model=custom", f"model.path={model}", f"store.dir={tmp_path}/store")
    with pytest.raises(ValueError, match="does not fit its weights"):
        run(built, tmp_path / "run", "group", Console())
    assert not list((tmp_path / "store" / "initial").glob("*"))
