"""GGUF files, as llama.cpp and Ollama use them, become folders that transformers reads.

What transformers loses of a header on the way is put back or refused: scaled positions, the end-of-turn token, and
special tokens that it would cut into pieces.
"""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc.models.weights import check_loaded

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens in a header
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def dequantise(file: Path, folder: Path, chat_template: str | None) -> None:
    """Writes the model and tokenizer of a GGUF file as float32 safetensors.

    Args:
        chat_template: the setting model.chat_template; null where the file has to have its own.
    Raises: ValueError if the file has no chat template and needs one, is none that transformers reads, is cut off, or
        lacks a weight of its model.
    """
    try:
        header = read_header(file)
        if chat_template is None and not _text(header, "tokenizer.chat_template"):
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
            f"model.path: {file.name} is not a GGUF file that can be read, or not all of one: {error}"
        ) from error
    model.config.name_or_path = file.name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class _Refused(Exception):
    """Says of a file why it cannot be used."""


def read_header(file: Path) -> GGUFReader:
    """The header of a GGUF file. Its tensors are mapped into memory, not read."""
    from gguf import GGUFReader

    return GGUFReader(file)


def _load(file: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported, and refused
        local_files_only=True,
        trust_remote_code=False,
    )
    model, report = loaded
    check_loaded(file.name, report, model.state_dict())
    return tokenizer, model


def _restore_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, header: GGUFReader) -> None:
    """Makes the end-of-turn token end answers, and checks that the template's tokens are single tokens."""
    tokens, kinds = _texts(header, "tokenizer.ggml.tokens"), _numbers(header, "tokenizer.ggml.token_type")
    named = [_number(header, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = [int(id_) for id_ in dict.fromkeys(named) if id_ is not None]
    unmarked = [tokens[id_] for id_ in ends if id_ not in tokenizer.all_special_ids]
    if unmarked:  # some converters call it a word
        tokenizer.add_special_tokens({"additional_special_tokens": unmarked}, replace_extra_special_tokens=False)
    if model.generation_config is not None and len(ends) > 1:
        model.generation_config.eos_token_id = ends
    template = _text(header, "tokenizer.chat_template") or ""
    for id_, (token, kind) in enumerate(zip(tokens, kinds, strict=False)):
        if id_ in ends or (kind in (_CONTROL, _USER_DEFINED) and token in template):
            read = tokenizer(token, add_special_tokens=False)["input_ids"]
            if read != [id_]:
                raise _Refused(
                    f"has {token} as token {id_}, which transformers reads as {read}: take the model as safetensors"
                )


def _restore_positions(model: PreTrainedModel, header: GGUFReader) -> None:
    """Puts back how rotary positions are scaled, of which transformers reads nothing from most files."""
    parameters = getattr(model.config, "rope_parameters", None) or {}
    whole = parameters.get("full_attention", parameters)  # of Gemma 3, whose local layers scale none
    if whole.get("rope_type", "default") != "default":
        return
    architecture = _text(header, "general.architecture")
    kind = _text(header, f"{architecture}.rope.scaling.type") or "none"
    tables = {tensor.name: tensor.data for tensor in header.tensors if tensor.name.startswith("rope_")}
    if kind == "none" and all((table == 1).all() for table in tables.values()):
        return
    factor = _number(header, f"{architecture}.rope.scaling.factor")
    if kind == "linear" and factor and not tables:
        whole |= {"rope_type": "linear", "factor": float(factor)}
    elif kind == "none" and tables.keys() == {"rope_freqs.weight"}:
        whole |= {"rope_type": "llama3", **_llama3(tables["rope_freqs.weight"], whole["rope_theta"])}
    else:
        what = kind if kind != "none" else ", ".join(sorted(tables))
        raise _Refused(f"scales positions ({what}), which transformers does not read: take the model as safetensors")


def _llama3(divisors: np.ndarray[Any, Any], theta: float) -> dict[str, float]:
    """The settings of Llama 3.1's scaled positions, of which a file has only what each frequency is divided by."""
    factor = float(divisors.max())
    low, high = (_LLAMA3["original_max_position_embeddings"] / _LLAMA3[f"{end}_freq_factor"] for end in ("low", "high"))
    for i, divisor in enumerate(divisors):
        length = 2 * math.pi * theta ** (i / len(divisors))
        smooth = min(1.0, max(0.0, (low / length - 1) / (low / high - 1)))
        if not math.isclose(divisor, 1 / ((1 - smooth) / factor + smooth), rel_tol=1e-4):
            raise _Refused("scales positions otherwise than Llama 3.1 and 3.2 do: take the model as safetensors")
    return {"factor": factor, **_LLAMA3}


def _text(header: GGUFReader, name: str) -> str | None:
    field = header.get_field(name)
    return None if field is None else str(field.contents())


def _number(header: GGUFReader, name: str) -> float | None:
    field = header.get_field(name)
    return None if field is None else field.contents()


def _texts(header: GGUFReader, name: str) -> list[str]:
    field = header.get_field(name)
    return [] if field is None else field.contents()


def _numbers(header: GGUFReader, name: str) -> list[int]:
    field = header.get_field(name)
    return [] if field is None else field.contents()
