"""LiveModel equals plain transformers and peft, and a model's folder cannot run code."""

from __future__ import annotations

import ast
import builtins
import json
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sampled import sampled
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

import stasc
from stasc.engines.engine import Decoding, Request
from stasc.engines.hf.engine import HF
from stasc.models import sources
from stasc.models.config import ModelConfig, load_chat, resolve_device, resolve_dtype
from stasc.models.live import LiveModel
from stasc.models.model import M_0, Model
from stasc.models.weights import swap_weights

CPU = torch.device("cpu")
IDS = torch.arange(4, 260, 3)[None]


# The models: M_0, other weights, two adapters


def random_adapter(base: str, seed: int, folder: Path) -> Path:
    """An adapter that changes every answer: both matrices are random, while a new adapter starts at zero."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def base(made: Path) -> str:
    return sources.fetch("tiny:0", made)


@pytest.fixture(scope="module")
def weights(made: Path) -> Path:
    """Stands for the weights of a full fine-tuning."""
    return Path(sources.fetch("tiny:1", made))


@pytest.fixture(scope="module")
def adapter(made: Path, base: str) -> Path:
    return random_adapter(base, 1, made / "adapter")


@pytest.fixture(scope="module")
def other_adapter(made: Path, base: str) -> Path:
    return random_adapter(base, 2, made / "other-adapter")


def live(base: str, dtype: torch.dtype = torch.float32, *, four_bit: bool = False) -> LiveModel:
    return LiveModel(base, None, CPU, dtype, four_bit=four_bit)


def logits(network: nn.Module) -> Tensor:
    network.eval()
    with torch.inference_mode():
        return network(IDS).logits


def plain_logits(base: str | Path, adapter: Path | None = None) -> Tensor:
    """Returns logits computed by transformers and peft alone."""
    network = AutoModelForCausalLM.from_pretrained(base)
    return logits(network if adapter is None else PeftModel.from_pretrained(network, adapter))


@dataclass
class Reads:
    """Counts the calls of `AutoModelForCausalLM.from_pretrained`."""

    places: list[str] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[], None] = lambda: None


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    seen = Reads()
    read = AutoModelForCausalLM.from_pretrained

    def from_pretrained(place: str | Path, **settings: Any) -> Any:
        seen.before()
        seen.places.append(str(place))
        seen.settings.append(settings)
        return read(place, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    return seen


# The model in memory becomes the one that is asked for


def test_a_model_that_is_in_memory_is_the_same_object_and_not_read_again(
    base: str, adapter: Path, reads: Reads
) -> None:
    one = live(base)
    for model in (M_0, Model(adapter=adapter)):
        network = one.load(model)
        assert one.load(Model(weights=model.weights, adapter=model.adapter)) is network
    assert reads.places == [base]


def test_each_kind_of_model_is_what_transformers_and_peft_load(base: str, weights: Path, adapter: Path) -> None:
    for model in (M_0, Model(adapter=adapter), Model(weights=weights), Model(weights=weights, adapter=adapter)):
        expected = plain_logits(model.weights or base, model.adapter)
        assert torch.equal(logits(live(base).load(model)), expected), model


def test_a_model_does_not_depend_on_those_that_were_in_memory_before(
    base: str, weights: Path, adapter: Path, other_adapter: Path
) -> None:
    """To the bit, over a sequence in which each of five models follows each other one."""
    models = [
        M_0,
        Model(adapter=adapter),
        Model(adapter=other_adapter),
        Model(weights=weights),
        Model(weights=weights, adapter=adapter),
    ]
    fresh = {model: logits(live(base).load(model)) for model in models}
    assert len({tuple(values.flatten().tolist()) for values in fresh.values()}) == len(models)
    one = live(base)
    for first in models:
        for second in models:
            assert torch.equal(logits(one.load(first)), fresh[first]), (first, second)
            assert torch.equal(logits(one.load(second)), fresh[second]), (first, second)


def test_base_weights_stay_where_they_are_when_only_the_adapter_changes(
    base: str, adapter: Path, other_adapter: Path, reads: Reads
) -> None:
    one = live(base)
    held = list(one.load(M_0).parameters())
    for model in (Model(adapter=adapter), Model(adapter=other_adapter), M_0, Model(adapter=adapter)):
        parameters = {id(parameter) for parameter in one.load(model).parameters()}
        assert all(id(parameter) in parameters for parameter in held)
    assert reads.places == [base]


def test_nothing_of_an_adapter_is_left_in_m_0(base: str, adapter: Path) -> None:
    one = live(base)
    names = one.load(M_0).state_dict().keys()
    assert one.load(Model(adapter=adapter)).state_dict().keys() != names
    assert one.load(M_0).state_dict().keys() == names


def test_an_adapter_goes_on_learning_and_its_base_does_not(base: str, adapter: Path) -> None:
    network = live(base).load(Model(adapter=adapter))
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in network.named_parameters() if "lora_" in name} != set()


def test_one_network_is_in_memory_at_a_time(base: str, weights: Path, reads: Reads) -> None:
    """The old network is freed before other weights are read, without the garbage collector."""
    one = live(base)
    held: list[weakref.ref[nn.Module]] = []

    def check() -> None:
        assert all(reference() is None for reference in held)

    reads.before = check
    for model, dtype in ((M_0, None), (Model(weights=weights), torch.float64), (M_0, None)):
        held.append(weakref.ref(one.load(model, dtype)))
    assert len(reads.places) == 3


def test_other_weights_are_put_into_the_network_that_is_there(base: str, weights: Path, reads: Reads) -> None:
    one = live(base)
    network = one.load(M_0)
    assert one.pop_loading_s() > 0
    for model, folder in ((Model(weights=weights), weights), (M_0, base)):
        assert one.load(model) is network
        assert torch.equal(logits(network), plain_logits(folder))
    assert reads.places == [base, str(weights), base]  # the first is ours, the others those of this test
    assert one.pop_loading_s() > 0 == one.pop_loading_s()


def test_weights_that_are_not_those_of_the_network_are_not_put_into_it(
    base: str, weights: Path, tmp_path: Path
) -> None:
    network = AutoModelForCausalLM.from_pretrained(base)
    whole = load_file(weights / "model.safetensors")
    name = next(name for name in whole if "down_proj" in name)
    for wrong in (
        {key: value for key, value in whole.items() if key != name},
        {**whole, "another": torch.ones(2)},
        {**whole, name: whole[name][:-1]},
    ):
        save_file({key: value.contiguous() for key, value in wrong.items()}, tmp_path / "model.safetensors")
        assert not swap_weights(network, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert not swap_weights(network, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "another.safetensors")
    assert not swap_weights(network, tmp_path)


def test_files_beside_the_weights_are_not_put_into_a_network(base: str, weights: Path, tmp_path: Path) -> None:
    whole = {key: value.contiguous() for key, value in load_file(weights / "model.safetensors").items()}
    for copy in ("a.safetensors", "model.fp16.safetensors", "zzz.safetensors"):
        save_file({key: value + 1 for key, value in whole.items()}, tmp_path / copy)
    names = sorted(whole)
    halves = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, some in halves.items():
        save_file({name: whole[name] for name in some}, tmp_path / file)
    index = {"weight_map": {name: file for file, some in halves.items() for name in some}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    network = AutoModelForCausalLM.from_pretrained(base)
    assert swap_weights(network, tmp_path)
    assert torch.equal(logits(network), plain_logits(weights))


def test_what_was_trained_in_memory_is_not_read_again(base: str, weights: Path, reads: Reads) -> None:
    one = live(base)
    network = one.load(M_0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # as training changes them, in place
    one.adopt(Model(weights=weights), network, torch.float32)
    assert one.load(Model(weights=weights)) is network
    assert reads.places == [base]
    assert torch.equal(logits(one.load(M_0)), plain_logits(base))


def test_the_revision_is_that_of_m_0_and_not_of_what_a_run_has_trained(base: str, weights: Path, reads: Reads) -> None:
    one = LiveModel(base, "v1.0", CPU, torch.float32, four_bit=False)
    one.load(M_0)
    one.load(Model(weights=weights), torch.float64)
    assert [settings["revision"] for settings in reads.settings] == ["v1.0", None]


# Dtypes


def dtypes(network: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in network.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_weights_are_held_in_the_dtype_of_the_model(base: str, dtype: torch.dtype) -> None:
    assert dtypes(live(base, dtype).load(M_0)) == {dtype}


def test_another_dtype_is_read_from_the_file_and_back(base: str) -> None:
    """Casting the network in memory would not restore the digits that bfloat16 lost."""
    one = live(base, torch.bfloat16)
    one.load(M_0)
    wide = one.load(M_0, torch.float32)
    assert dtypes(wide) == {torch.float32}
    assert torch.equal(logits(wide), plain_logits(base))
    assert dtypes(one.load(M_0)) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("dtype", "trained"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_weights_are_trained_in_32_bits_at_least(base: str, dtype: torch.dtype, trained: torch.dtype) -> None:
    assert live(base, dtype).training_dtype == trained


# 4 bits


def test_four_bit_holds_each_linear_layer_but_the_head_in_nf4(base: str) -> None:
    network = live(base, four_bit=True).load(M_0)
    linear = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    packed = {name for name, module in linear.items() if isinstance(module, bnb.nn.Linear4bit)}
    assert linear.keys() - packed == {"lm_head"}
    assert len(packed) == 2 * 7  # layers, of four matrices of attention and three after it
    for name in packed:
        weight = linear[name].weight
        assert (weight.dtype, weight.quant_state.quant_type, weight.quant_state.nested) == (torch.uint8, "nf4", True)
    assert not torch.equal(logits(network), plain_logits(base))


def test_four_bit_samples_what_transformers_generates(base: str) -> None:
    network = live(base, four_bit=True).load(M_0)
    prompt = tuple(IDS[0, :9].tolist())
    greedy = sampled(HF(2), network, [Request(prompt, (0,))], Decoding(0.0, 1.0, 8, frozenset()))[0][0]
    ids = torch.tensor([prompt])
    expected = network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, eos_token_id=-1, pad_token_id=0
    )
    assert greedy.ids == tuple(expected[0, len(prompt) :].tolist())
    drawn = sampled(HF(2), network, [Request(prompt, (0, 1, 2))], Decoding(1.0, 0.9, 8, frozenset()))[0]
    assert [len(completion.ids) for completion in drawn] == [8, 8, 8]
    assert len({completion.ids for completion in drawn}) == 3


def test_four_bit_weights_stay_packed_below_an_adapter_and_after_it(
    base: str, adapter: Path, other_adapter: Path, reads: Reads
) -> None:
    one = live(base, four_bit=True)
    models = [M_0, Model(adapter=adapter), Model(adapter=other_adapter), M_0, Model(adapter=adapter)]
    found = [logits(one.load(model)) for model in models]
    assert reads.places == [base]
    assert sum(isinstance(module, bnb.nn.Linear4bit) for module in one.load(M_0).modules()) == 14
    for model, values in zip(models, found, strict=True):
        assert torch.equal(values, logits(live(base, four_bit=True).load(model)))


def test_float64_is_not_quantised_to_four_bits(base: str) -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=float64"):
        live(base, torch.float64, four_bit=True)


# Devices and dtypes by name


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda:0"), (False, "cpu")])
def test_auto_is_cuda_where_there_is_one(there: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert resolve_device("auto") == torch.device(expected)


def test_cpu_is_the_cpu_even_beside_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("device", ["", "gpu", "tpu:0", "cuda:first", "mps", "meta"])
def test_an_unknown_device_is_refused_with_those_that_are_known(device: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.device={device}: expected auto, cpu, cuda or cuda:1$"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_cuda_that_is_not_there_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=rf"^model\.device={device}: .* sees no CUDA device; set model\.device=auto"):
        resolve_device(device)


def test_of_two_cuda_devices_there_are_0_and_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [str(resolve_device(name)) for name in ("cuda", "cuda:0", "cuda:1")] == ["cuda:0", "cuda:0", "cuda:1"]
    for name in ("cuda:2", "cuda:7"):
        with pytest.raises(ValueError, match=rf"^model\.device={name}: there are only 2 CUDA devices"):
            resolve_device(name)


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float16", "cuda", torch.float16),
        ("float64", "cpu", torch.float64),
    ],
)
def test_a_dtype_is_the_one_named_and_auto_fits_the_device(name: str, device: str, expected: torch.dtype) -> None:
    assert resolve_dtype(name, torch.device(device)) == expected


def test_float16_is_refused_on_the_cpu() -> None:
    with pytest.raises(ValueError, match=r"model\.dtype=float16 .*CPU"):
        resolve_dtype("float16", CPU)


def test_attention_is_the_one_that_is_set(base: str, weights: Path) -> None:
    live = LiveModel(base, None, CPU, torch.float32, four_bit=False, attention="eager")
    for model in (M_0, Model(weights), M_0):
        assert live.load(model).config._attn_implementation == "eager"


def test_flex_attention_is_refused_on_the_cpu(base: str) -> None:
    with pytest.raises(ValueError, match=r"model\.attention=flex_attention .*CPU"):
        LiveModel(base, None, CPU, torch.float32, four_bit=False, attention="flex_attention")


@pytest.mark.parametrize("name", ["flash_attention_2", "no-such-attention"])
def test_an_attention_that_is_not_there_is_named_with_its_setting(base: str, name: str) -> None:
    live = LiveModel(base, None, CPU, torch.float32, four_bit=False, attention=name)
    with pytest.raises(ValueError, match=rf"(?s)model\.attention={name}: .*; set model\.attention=null"):
        live.load(M_0)


def config(path: str | Path, template: str | None = None, dtype: str = "auto", cache: str = "unused") -> ModelConfig:
    return ModelConfig(
        path=str(path),
        revision=None,
        device="cpu",
        dtype=dtype,
        attention=None,
        chat_template=template,
        template_args={},
        date="2024-07-26",
        cache_dir=cache,
    )


@pytest.mark.parametrize("dtype", ["fp32", "int8", "Float32", "__version__"])
def test_an_unknown_dtype_is_refused_before_any_model_is_read(dtype: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.dtype={dtype}: expected one of auto, float32, bfloat16"):
        config("tiny:0", dtype=dtype)


@pytest.mark.parametrize("date", ["today", "26 Jul 2024", "2024-13-01", ""])
def test_a_date_that_is_none_is_refused_before_any_model_is_read(date: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.date={date}: expected a date such as 2024-07-26"):
        replace(config("tiny:0"), date=date)


def test_the_cache_may_be_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config("tiny:0", cache="~/models").fetch() == str(tmp_path / "models" / "tiny-0")


# The tokenizer, its template and what ends an answer


@pytest.fixture
def copy(base: str, tmp_path: Path) -> Path:
    """Returns a copy of M_0's folder that a test may change."""
    return Path(shutil.copytree(base, tmp_path / "copy"))


def rewrite(file: Path, **settings: object) -> None:
    """Changes settings in a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_an_answer_ends_at_each_token_that_any_part_of_the_model_names(copy: Path) -> None:
    """They are the template's end of turn, the tokenizer's end of text, and those of the generation settings."""
    ids = AutoTokenizer.from_pretrained(copy).convert_tokens_to_ids
    rewrite(copy / "tokenizer_config.json", eos_token="<|system|>")
    rewrite(copy / "generation_config.json", eos_token_id=[*ids(["<|user|>", "A", "B"])])
    expected = frozenset(ids(["<|end|>", "<|system|>", "<|user|>", "A", "B"]))
    assert load_chat(config(copy), str(copy)).stop_ids == expected


def test_generation_settings_may_name_one_token_or_none_or_be_absent(copy: Path) -> None:
    end, user = AutoTokenizer.from_pretrained(copy).convert_tokens_to_ids(["<|end|>", "<|user|>"])
    file = copy / "generation_config.json"
    for named, expected in ((user, {end, user}), (None, {end})):
        rewrite(file, eos_token_id=named)
        assert load_chat(config(copy), str(copy)).stop_ids == expected
    file.unlink()
    assert load_chat(config(copy), str(copy)).stop_ids == {end}


def test_a_base_model_without_a_chat_template_is_told_of_the_setting(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"has no chat template.*model\.chat_template=plain"):
        load_chat(config(copy), str(copy))
    chat = load_chat(config(copy, "plain"), str(copy))
    assert chat.decode(chat.prompt([{"role": "user", "content": "one"}])) == "Question: one\nAnswer:"


# What a model's folder may not do: run code, or be something else than it says


def trap(folder: Path) -> Path:
    """Adds a module to a model's folder; returns the file that it writes if it is run."""
    sprung = folder.parent / "sprung"
    (folder / "canary.py").write_text(
        f"from pathlib import Path\nPath({str(sprung)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'unheard_of'\n"
        "class Network(LlamaForCausalLM):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    networks = {"AutoConfig": "canary.Config", "AutoModelForCausalLM": "canary.Network"}
    rewrite(folder / "config.json", auto_map=networks, architectures=["Network"], model_type="unheard_of")
    tokenizers = {"AutoTokenizer": [None, "canary.Tokenizer"]}
    rewrite(folder / "tokenizer_config.json", auto_map=tokenizers, tokenizer_class="Tokenizer")
    return sprung


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the questions to a user, who answers yes."""
    questions: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda question="": questions.append(question) or "y")
    return questions


@pytest.fixture
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirects the folder where transformers puts code of models."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.usefixtures("_modules")
def test_code_that_comes_with_a_model_is_refused_unread_and_unasked(copy: Path, asked: list[str]) -> None:
    sprung = trap(copy)
    with pytest.raises(ValueError, match="trust_remote_code"):
        live(str(copy)).load(M_0)
    with pytest.raises(ValueError, match="trust_remote_code"):
        live(str(copy)).load(Model(weights=copy))
    with pytest.raises(ValueError, match=rf"model\.path={copy}: it needs code that comes with it, which is never run"):
        load_chat(config(copy), str(copy))
    assert (sprung.exists(), asked) == (False, [])

    AutoModelForCausalLM.from_pretrained(copy, trust_remote_code=True)
    assert sprung.exists()  # the trap works


@pytest.mark.usefixtures("_modules")
def test_code_that_comes_with_a_known_kind_of_model_is_not_used(base: str, copy: Path, asked: list[str]) -> None:
    sprung = trap(copy)
    rewrite(copy / "config.json", model_type="llama")
    rewrite(copy / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    assert torch.equal(logits(live(str(copy)).load(M_0)), plain_logits(base))
    assert load_chat(config(copy), str(copy)).stop_ids == load_chat(config(base), base).stop_ids
    assert (sprung.exists(), asked) == (False, [])


class Canary:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.file),)


PICKLES = (
    *("pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "adapter_model.bin", "model.pt", "training_args.bin"),
    *("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "tokenizer.pkl", "vocab.pkl"),
)


@pytest.fixture
def sprung(tmp_path: Path) -> Path:
    """The file that a canary writes when it is opened."""
    return tmp_path / "sprung"


def add_pickles(folder: Path, sprung: Path) -> None:
    for name in PICKLES:
        (folder / name).write_bytes(pickle.dumps(Canary(sprung)))
    shard = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model-00001-of-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(shard))


def test_pickles_beside_the_weights_are_not_opened(base: str, copy: Path, adapter: Path, sprung: Path) -> None:
    add_pickles(copy, sprung)
    with_adapter = Path(shutil.copytree(adapter, copy.parent / "adapter"))
    add_pickles(with_adapter, sprung)
    assert config(copy).fetch() == str(copy)
    load_chat(config(copy), str(copy))
    one = live(str(copy))
    assert torch.equal(logits(one.load(M_0)), plain_logits(base))
    assert torch.equal(logits(one.load(Model(adapter=with_adapter))), plain_logits(base, adapter))
    assert torch.equal(logits(one.load(Model(weights=copy))), plain_logits(base))
    assert not sprung.exists()

    pickle.loads((copy / PICKLES[0]).read_bytes())  # noqa: S301 - the trap works
    assert sprung.exists()


@pytest.mark.parametrize("index", [True, False])
def test_pickles_in_place_of_the_weights_are_refused_unopened(copy: Path, sprung: Path, index: bool) -> None:
    add_pickles(copy, sprung)
    (copy / "model.safetensors").unlink()
    (copy / ("pytorch_model.bin" if index else "pytorch_model.bin.index.json")).unlink()
    message = rf"model\.path={copy}: no \.safetensors file .* pytorch_model\.bin, are never opened"
    with pytest.raises(ValueError, match=message):
        config(copy).fetch()
    for model in (M_0, Model(weights=copy)):
        with pytest.raises(OSError, match=rf"the weights of {copy} cannot be read: .*set model\.path"):
            live(str(copy)).load(model)
    assert not sprung.exists()


def test_a_pickle_in_place_of_an_adapter_is_refused_unopened(base: str, adapter: Path, sprung: Path) -> None:
    """For an adapter that a run wrote, and for one given as M_0."""
    folder = Path(shutil.copytree(adapter, sprung.parent / "adapter"))
    add_pickles(folder, sprung)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match=rf"no adapter_model\.safetensors in {folder}"):
        live(base).load(Model(adapter=folder))
    with pytest.raises(ValueError, match=rf"model\.path={folder}: no \.safetensors file"):
        config(folder).fetch()
    with pytest.raises(OSError, match=r"safetensors"):
        live(str(folder)).load(M_0)
    assert not sprung.exists()


def test_an_adapter_in_a_harmless_pickle_is_refused_as_well(base: str, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    plain_logits(base, folder)  # where this is not asked for
    with pytest.raises(OSError, match=r"no adapter_model\.safetensors"):
        live(base).load(Model(adapter=folder))


def test_weights_in_a_pickle_are_refused_even_if_it_is_harmless(copy: Path) -> None:
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(copy)  # where this is not asked for
    with pytest.raises(OSError, match="safetensors"):
        live(str(copy)).load(M_0)


@pytest.mark.parametrize("four_bit", [False, True])
def test_a_folder_that_lacks_weights_is_refused(copy: Path, four_bit: bool) -> None:
    """transformers would fill them with random numbers."""
    kept = load_file(copy / "model.safetensors")
    missing = "model.layers.1.mlp.up_proj.weight"
    del kept[missing]
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"model\.path: {copy} lacks 1 of its weights, e\.g\. {missing}:"):
        live(str(copy), four_bit=four_bit).load(M_0)


MAPS = {  # the file that names code of the model, how it does, and what else makes it needed
    "config": ("config.json", {"AutoConfig": "canary.Config"}, {"model_type": "unheard_of"}),
    "model": ("config.json", {"AutoModelForCausalLM": "canary.Network"}, {"model_type": "unheard_of"}),
    "tokenizer": (
        "tokenizer_config.json",
        {"AutoTokenizer": [None, "canary.Tokenizer"]},
        {"tokenizer_class": "Tokenizer"},
    ),
}
READ = """
import json, sys, time
from test_model import M_0, config, live, load_chat
from stasc.models.checkpoint import check
for folder in sys.argv[1:]:
    began = time.perf_counter()
    try:
        load_chat(config(folder), folder)
        check(config(folder), folder, full=True, four_bit=False)
        live(folder).load(M_0)
        outcome = "read"
    except ValueError as error:
        outcome = str(error)
    print(json.dumps([outcome, time.perf_counter() - began]))
"""


@pytest.mark.slow
def test_with_nobody_to_ask_code_of_a_model_is_passed_over_or_refused_at_once(base: str, tmp_path: Path) -> None:
    """Standard input is closed. Each map is tried alone, for models that transformers supports and others."""
    folders = []
    for kind, (name, auto_map, needing) in MAPS.items():
        for needed in (False, True):
            folder = Path(shutil.copytree(base, tmp_path / f"{kind}-{needed}" / "model"))
            trap(folder)
            for file in ("config.json", "tokenizer_config.json"):
                shutil.copy(Path(base) / file, folder)
            rewrite(folder / name, auto_map=auto_map, **(needing if needed else {}))
            folders.append(str(folder))
    answer = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", READ, *folders],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    outcomes = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("[")]
    for folder, (outcome, seconds) in zip(folders, outcomes, strict=True):
        needed = "True" in Path(folder).parent.name
        assert outcome.startswith(f"model.path={folder}: ") if needed else outcome == "read", folder
        assert "trust_remote_code" not in outcome
        assert seconds < 5
    assert sum("code that comes with it, which is never run" in outcome for outcome, _ in outcomes) == 2
    assert not list(tmp_path.glob("*/sprung"))


# Where code of a model is out of the question: Peft's and the generation settings' classes take no such argument.
# datasets 5 runs no scripts; it takes the argument for old callers and drops it.
WITHOUT_CODE = {"GenerationConfig.from_pretrained", "PeftModel.from_pretrained", "datasets.load_dataset"}


def trusting(code: str) -> tuple[int, list[int]]:
    """Returns the number of calls that may load code, and the lines of those that do not forbid it."""
    calls, trusted = 0, []
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        *_, owner, name = ["", *ast.unparse(node.func).split(".")]
        if f"{owner}.{name}" in WITHOUT_CODE:
            continue
        if name in ("from_pretrained", "load_dataset") or (name == "from_config" and owner.startswith("Auto")):
            calls += 1
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if given.get("trust_remote_code") != "False":
                trusted.append(node.lineno)
    return calls, trusted


def test_no_call_leaves_open_whether_code_of_a_model_is_run() -> None:
    package = Path(stasc.__file__).parent
    found = {path.relative_to(package).as_posix(): trusting(path.read_text()) for path in package.rglob("*.py")}
    assert {name: lines for name, (_, lines) in found.items() if lines} == {}
    loading = {f"models/{name}.py" for name in ("live", "config", "dequantise", "checkpoint")}
    assert {name for name, (calls, _) in found.items() if calls} >= loading


@pytest.mark.parametrize(
    "code",
    [
        "AutoTokenizer.from_pretrained(path)",
        "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)",
        "transformers.AutoConfig.from_pretrained(path, trust_remote_code=setting)",
        "AutoModelForCausalLM.from_config(path, **settings)",
        "LlamaForCausalLM.from_pretrained(path)",
        "load_dataset(path)",
        "transformers.pipeline('text-generation').model.from_pretrained(path)",
    ],
)
def test_that_test_sees_a_call_that_does(code: str) -> None:
    assert trusting(f"pass\n{code}") == (1, [2])
