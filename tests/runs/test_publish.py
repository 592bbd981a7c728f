"""What a run publishes is read by transformers 4 and 5, names its own base, and shares no file and no place."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from test_model import rewrite
from test_run import experiment, run_tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GenerationConfig,
    LlamaConfig,
)

from stasc.models import sources
from stasc.models.config import load_chat
from stasc.models.sources import snapshot
from stasc.runs import publish

FULL, LORA = (("filter=all", "iterations=1", f"finetune={method}") for method in ("full", "lora"))
IDS = torch.arange(4, 260, 3)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("models"))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def settings(folder: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / name).read_text())
    return read


def readable(file: Path) -> bytes:
    """Of weights, the header."""
    data = file.read_bytes()
    return data[: 8 + int.from_bytes(data[:8], "little")] if file.suffix == ".safetensors" else data


# Places


@pytest.mark.parametrize("method", [FULL, LORA])
def test_nothing_in_the_store_or_in_what_is_published_names_a_place_host_or_user(
    method: tuple[str, ...], base: str, tmp_path: Path
) -> None:
    model = shutil.copytree(base, tmp_path / "a-place" / "model")
    run_tiny(tmp_path / "run", "model=custom", f"model.path={model}", "iterations=2", "start=evolving", *method[::2])
    store = tmp_path / "run.store"
    artifacts = [file for kind in ("initial", "correction", "filter", "finetune", "model", "evaluation")
                 for file in (store / kind).rglob("*") if file.is_file()]  # fmt: skip
    assert {file.name for file in artifacts} >= {"COMMIT.json", "training.json", "pairs.jsonl"}
    names = [str(tmp_path), str(Path.home()), socket.gethostname(), f"/{getpass.getuser()}"]
    sought = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names).encode())
    assert [file for file in artifacts if sought.search(readable(file))] == []
    published = [file for file in (tmp_path / "run" / "model").iterdir() if file.name != "adapter_config.json"]
    assert not [file for file in published if str(tmp_path).encode() in file.read_bytes()]


def test_runs_of_one_model_at_two_places_share_an_adapter_and_each_publishes_its_own_base(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        shutil.copytree(base, tmp_path / name)
        run_tiny(tmp_path / f"run-{name}", "model=custom", f"model.path=./{name}", f"store.dir={tmp_path}/store", *LORA)
    assert len(list((tmp_path / "store" / "model").iterdir())) == 1
    for name in ("one", "other"):
        folder = tmp_path / f"run-{name}" / "model"
        adapter = settings(folder, "adapter_config.json")
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == (f"./{name}", None)
        assert adapter["target_modules"] == sorted(adapter["target_modules"])
        AutoPeftModelForCausalLM.from_pretrained(folder)


def test_the_base_of_an_adapter_of_a_hub_model_is_its_name_and_commit(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = Path(shutil.copytree(base, tmp_path / "models--Org--Name" / "snapshots" / commit))
    monkeypatch.setattr(sources, "snapshot", lambda name, revision: str(cached))
    assert snapshot is not sources.snapshot
    run_tiny(tmp_path / "run", "model=custom", "model.path=Org/Name", *LORA)
    adapter = settings(tmp_path / "run" / "model", "adapter_config.json")
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("Org/Name", commit)


# Files


@pytest.mark.parametrize("method", [FULL, LORA, ("filter=none", *FULL[1:])])
@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_published_files_are_copies_with_the_modes_that_new_files_have(
    method: tuple[str, ...], umask: int, base: str, tmp_path: Path
) -> None:
    """A model that was not trained is copied from the user's own files, which may be private or links."""
    was = os.umask(umask)
    try:
        nothing = ("~filter", "+filter={_target_: test_publish.nothing, _partial_: true, letter: X}")
        given = [*nothing, *method[1:]] if method[0] == "filter=none" else method
        run_tiny(tmp_path / "run", "variant=any", *given)
    finally:
        os.umask(was)
    folders = [tmp_path / "run" / "model", *(tmp_path / "run.store" / "model").glob("*/weights")]
    assert len(folders) == 2 - (method[0] == "filter=none")
    for folder in folders:
        files = list(folder.iterdir())
        assert {mode(file) for file in files} == {0o666 & ~umask}
        assert {file.stat().st_nlink for file in files} == {1}
        assert mode(folder) == 0o777 & ~umask


def nothing(r1: float, r2: float) -> bool:
    return False


def test_a_made_model_can_be_read_by_all_who_may_read_its_folder(tmp_path: Path) -> None:
    folder = Path(sources.fetch("tiny:0", tmp_path))
    assert len({mode(file) for file in folder.iterdir()}) == 1
    assert mode(folder) == mode(tmp_path.parent / tmp_path.name) | (mode(folder) & 0o055)


def test_editing_a_published_model_leaves_the_store_as_it_is(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", *FULL)
    (kept,) = (tmp_path / "run.store" / "model").glob("*/weights/model.safetensors")
    before = kept.read_bytes()
    published = tmp_path / "run" / "model" / "model.safetensors"
    assert published.read_bytes() == before
    with published.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"edit")
    assert kept.read_bytes() == before


# Transformers 4


@pytest.mark.parametrize("method", [FULL, LORA])
def test_a_published_tokenizer_has_the_settings_that_transformers_4_reads(
    method: tuple[str, ...], base: str, tmp_path: Path
) -> None:
    """As of 4.57: no TokenizersBackend, a dictionary of extra tokens, templates in the settings."""
    run_tiny(tmp_path / "run", *method)
    folder = tmp_path / "run" / "model"
    written = settings(folder, "tokenizer_config.json")
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert written["additional_special_tokens"] == ["<|system|>", "<|user|>", "<|assistant|>"]
    assert "extra_special_tokens" not in written
    template = AutoTokenizer.from_pretrained(base).chat_template
    assert written["chat_template"] == template == (folder / "chat_template.jinja").read_text()
    one, other = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(folder)
    text = "<|user|>naïve  🙂<|end|><|assistant|>"
    assert one(text)["input_ids"] == other(text)["input_ids"]
    assert one.special_tokens_map == other.special_tokens_map
    assert one.chat_template == other.chat_template


CONFIGS = {
    "llama": (LlamaConfig(rope_parameters={"rope_type": "default", "rope_theta": 5e5}), {"rope_theta": 5e5}),
    "llama 3.1": (
        LlamaConfig(
            rope_parameters={
                **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0},
                **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
            },
            max_position_embeddings=128,
        ),
        {"rope_theta": 5e5, "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            **{"high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        }},
    ),
    "gemma 3": (
        Gemma3TextConfig(
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        ),
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_a_published_config_has_the_names_that_transformers_4_reads(
    config: Any, expected: dict[str, Any], tmp_path: Path
) -> None:
    """It knows no rope_parameters, and would take the default without a word; 5 reads what it read before."""
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path)
    file = tmp_path / "config.json"
    written = publish.config_for_4(json.loads(file.read_text()))
    assert {name: written[name] for name in expected} == expected
    assert written["torch_dtype"] == "bfloat16"
    file.write_text(json.dumps(written))
    after = AutoConfig.from_pretrained(tmp_path)
    assert after.rope_parameters == before.rope_parameters
    assert after.dtype == before.dtype


def test_the_names_that_a_config_has_already_stay(tmp_path: Path) -> None:
    given = {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0, "rope_type": "default"}}
    assert publish.config_for_4(given)["rope_theta"] == 1.0


@pytest.mark.parametrize("method", [FULL, LORA])
def test_a_published_model_says_which_tokens_end_its_answers(
    method: tuple[str, ...], base: str, tmp_path: Path
) -> None:
    """Those at which the run ended them, whatever the base's settings say."""
    model = Path(shutil.copytree(base, tmp_path / "model"))
    rewrite(model / "generation_config.json", eos_token_id=[7, 8], top_k=5)
    given = ("model=custom", f"model.path={model}", *method)
    run_tiny(tmp_path / "run", *given)
    read = GenerationConfig.from_pretrained(tmp_path / "run" / "model")
    assert read.eos_token_id == sorted(load_chat(experiment(*given).model, str(model)).stop_ids) == [0, 7, 8]
    (model / "generation_config.json").unlink()
    run_tiny(tmp_path / "again", *given)
    assert GenerationConfig.from_pretrained(tmp_path / "again" / "model").eos_token_id == 0


def test_a_published_model_computes_what_m_n_does(tmp_path: Path) -> None:
    run_tiny(tmp_path / "run", *FULL)
    (kept,) = (tmp_path / "run.store" / "model").glob("*/weights")
    with torch.inference_mode():
        one, other = (AutoModelForCausalLM.from_pretrained(f)(IDS).logits for f in (kept, tmp_path / "run" / "model"))
    assert torch.equal(one, other)
