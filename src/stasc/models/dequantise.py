"""Converts GGUF files, the format of llama.cpp and Ollama, into folders that transformers reads.

transformers drops parts of the header: scaled positions, the end-of-turn token, and some special tokens. They are
restored here, or the file is refused.
"""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from stasc.models.weights import check_loaded

_CONTROL, _USER_DEFINED = 3, 4  # token types in a header
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def dequantise(file: Path, folder: Path, chat_template: str | None) -> None:
    """Writes the model and tokenizer of a GGUF file as float32 safetensors.

    Args:
        chat_template: the setting model.chat_template; None if the file needs a template of its own.
    Raises: ValueError if transformers cannot read the file, or the file is cut off or lacks a weight or a template.
    """
    try:
        header = GGUFReader(file)  # maps the tensors into memory
        if chat_template is None and not _field(header, "tokenizer.chat_template"):
            raise _Refused(
                "has no chat template, as base models do not: set model.chat_template=plain (Question / Answer lines) "
                "or to the path of a Jinja file"
            )
        print(f"dequantising {file.name} into {folder.parent}, once", file=sys.stderr)
        tokenizer, model = _load(file)
        _restore_tokens(tokenizer, model, header)
        _restore_positions(model, header)
    except _Refused as refusal:
        raise ValueError(f"model.path: {file.name} {refusal}") from refusal
    except (ValueError, IndexError, struct.error) as error:
        if str(error).startswith("model.path"):
            raise
        raise ValueError(
            f"model.path: {file.name} is not a readable GGUF file, or only a part of one: {error}"
        ) from error
    model.config.name_or_path = file.name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _Refused(Exception):
    """The reason why a file cannot be used; the message continues after the file's name."""


def _load(file: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # check_loaded refuses them
        local_files_only=True,
        trust_remote_code=False,
    )
    model, report = loaded
    check_loaded(file.name, report, model.state_dict())
    return tokenizer, model


def _restore_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, header: GGUFReader) -> None:
    """Makes the end-of-turn token end answers, and checks that the template's tokens are read as single tokens."""
    tokens, kinds = (_field(header, f"tokenizer.ggml.{name}", []) for name in ("tokens", "token_type"))
    named = [_field(header, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = [int(id_) for id_ in dict.fromkeys(named) if id_ is not None]
    unmarked = [tokens[id_] for id_ in ends if id_ not in tokenizer.all_special_ids]
    if unmarked:  # some converters do not mark it as special
        tokenizer.add_special_tokens({"additional_special_tokens": unmarked}, replace_extra_special_tokens=False)
    if model.generation_config is not None and len(ends) > 1:
        model.generation_config.eos_token_id = ends
    template = _field(header, "tokenizer.chat_template", "")
    for id_, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if id_ in ends or (kind in (_CONTROL, _USER_DEFINED) and token in template):
            read = tokenizer(token, add_special_tokens=False)["input_ids"]
            if read != [id_]:
                raise _Refused(
                    f"has {token} as token {id_}, which transformers reads as {read}: take the model as safetensors"
                )


def _restore_positions(model: PreTrainedModel, header: GGUFReader) -> None:
    """Restores the scaling of rotary positions, which transformers does not read from most files."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    whole = parameters.get("full_attention", parameters)  # in Gemma 3, only these layers scale positions
    if whole.get("rope_type", "default") != "default":
        return
    architecture = _field(header, "general.architecture")
    kind = _field(header, f"{architecture}.rope.scaling.type") or "none"
    tables = {tensor.name: tensor.data for tensor in header.tensors if tensor.name.startswith("rope_")}
    if kind == "none" and all((table == 1).all() for table in tables.values()):
        return
    factor = _field(header, f"{architecture}.rope.scaling.factor")
    if kind == "linear" and factor and not tables:
        whole |= {"rope_type": "linear", "factor": float(factor)}
    elif kind == "none" and tables.keys() == {"rope_freqs.weight"}:
        whole |= {"rope_type": "llama3", **_llama3(tables["rope_freqs.weight"], whole["rope_theta"])}
    else:
        what = kind if kind != "none" else ", ".join(sorted(tables))
        raise _Refused(f"scales positions ({what}), which transformers does not read: take the model as safetensors")


def _llama3(divisors: np.ndarray[Any, Any], theta: float) -> dict[str, float]:
    """Returns the settings of Llama 3.1's scaled positions; a file has only the divisor of each frequency."""
    factor = float(divisors.max())
    low, high = (_LLAMA3["original_max_position_embeddings"] / _LLAMA3[f"{end}_freq_factor"] for end in ("low", "high"))
    for i, divisor in enumerate(divisors):
        length = 2 * math.pi * theta ** (i / len(divisors))
        smooth = min(1.0, max(0.0, (low / length - 1) / (low / high - 1)))
        if not math.isclose(divisor, 1 / ((1 - smooth) / factor + smooth), rel_tol=1e-4):
            raise _Refused("scales positions otherwise than Llama 3.1 and 3.2 do: take the model as safetensors")
    return {"factor": factor, **_LLAMA3}


def _field(header: GGUFReader, name: str, default: Any = None) -> Any:
    """Returns a field of the header: text, a number or a list of them."""
    field = header.get_field(name)
    return default if field is None else field.contents()
