"""Checks that M_0 can be sampled from and fine-tuned, and that all questions fit, before any weights are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from stasc.models.chat import Chat, Refused
from stasc.models.config import ModelConfig, reading
from stasc.models.weights import weight_files
from stasc.records import Split
from stasc.settings.sections import Evaluation, Sampling
from stasc.tasks.prompt import Conversations, Message

_WHOLE = "a whole model, as save_pretrained writes it"
_ANSWER = "\ue000"  # a character for private use, so no question has it


def check(model: ModelConfig, base: str, *, full: bool, four_bit: bool) -> PreTrainedConfig:
    """Returns the configuration of M_0, whose local folder is `base`.

    Args:
        full: whether all weights are trained.
        four_bit: whether the base weights are held in 4 bits.
    Raises: ValueError or OSError naming model.path if the model cannot be sampled from or fine-tuned.
    """
    folder = Path(base)
    with reading(model):
        _check_adapter(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"no config.json in {folder}: expected {_WHOLE}")
        config: PreTrainedConfig = AutoConfig.from_pretrained(base, revision=model.revision, trust_remote_code=False)
        _check_kind(config)
        _check_quantization(getattr(config, "quantization_config", None), full, four_bit)
        _check_files(folder)
    return config


def _check_adapter(folder: Path) -> None:
    """Refuses an adapter: transformers would load the adapter's base instead of the folder's own weights."""
    if not (folder / "adapter_config.json").is_file():
        return
    try:
        base = json.loads((folder / "adapter_config.json").read_bytes()).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        base = None
    raise ValueError(
        f"it is an adapter of {base or 'another model'}, expected {_WHOLE}: merge it into that model "
        "(merge_and_unload() of peft, then save_pretrained), or set model.path to that model"
    )


def _check_kind(config: PreTrainedConfig) -> None:
    """Checks for a causal language model with attention: answers share a KV cache."""
    kind = config.model_type
    names = config.architectures or []
    encoder = getattr(config, "is_decoder", True) is False and not any(name.endswith("ForCausalLM") for name in names)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder or encoder:
        raise ValueError(f"{kind} is not a causal language model: take a decoder-only one, such as Llama or Qwen")
    if not hasattr(config.get_text_config(), "num_attention_heads"):
        raise ValueError(f"{kind} has no attention, which sampling relies on: take a model with attention layers")


def _check_quantization(settings: Any, full: bool, four_bit: bool) -> None:
    """Checks that quantised weights can be trained on: they need bitsandbytes and an adapter."""
    if not settings:
        return
    known = settings if isinstance(settings, dict) else settings.to_dict()
    stored = str(known.get("quant_method"))
    if stored != "bitsandbytes":
        raise ValueError(
            f"its weights are quantised by {stored}, and only bitsandbytes weights can be trained: take the original "
            "model"
        )
    bits = 4 if known.get("load_in_4bit") else 8
    if full:
        raise ValueError(
            f"its weights are stored in {bits} bits, which finetune=full cannot train: take finetune=lora, or the "
            "original model"
        )
    if four_bit and bits == 8:
        raise ValueError(
            "its weights are stored in 8 bits, and finetune=qlora needs 4: take finetune=lora, or the original model"
        )


def _check_files(folder: Path) -> None:
    """Checks that the weight files exist and are as long as their headers say."""
    files = weight_files(folder)
    if not files:
        there = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
        raise ValueError(f"neither model.safetensors nor its index is in {folder}, only {there}")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file.name}, which the index names, is not in {folder}: download the model again")
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file.name} is cut off or damaged ({error}): download the model again") from error


def context_limit(config: PreTrainedConfig) -> int | None:
    """Returns the most tokens that a model can read and write together; None if its configuration sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_context(
    limit: int | None,
    chat: Chat,
    prompt: Conversations,
    train: Split,
    test: Split,
    sampling: Sampling,
    evaluation: Evaluation,
) -> None:
    """Checks the prompt of each question, and that of its correction after the longest possible answer.

    Raises: ValueError naming the question, and the setting that limits its answers.
    """
    tested = "sampling" if evaluation.max_new_tokens is None else "evaluation"
    for split, group, new in (
        (train, "sampling", sampling.max_new_tokens),
        (test, tested, evaluation.sampling(sampling).max_new_tokens),
    ):
        setting = f"{group}.max_new_tokens"
        for question in split.questions:
            quoted = prompt.ask_to_correct(question.text, _ANSWER)
            answers = sum(message["content"].count(_ANSWER) for message in quoted)
            corrections = [prompt.ask_to_correct(question.text, y1) for y1 in ("", "?")]
            for what, conversations, read in (
                ("its prompt", [prompt.ask(question.text)], 0),
                ("the prompt of its correction", corrections, answers * new),
            ):
                try:
                    tokens = _length(chat, conversations) + read
                except Refused as error:
                    raise ValueError(f"question {question.name}: {what}: {error}, or leave the question out") from error
                if limit is not None and tokens + new > limit:
                    raise ValueError(
                        f"question {question.name}: {what} takes up to {tokens} tokens, which with {setting}={new} "
                        f"exceeds the model's context of {limit} tokens; lower {setting}, or leave the question out"
                    )


def _length(chat: Chat, conversations: Sequence[Sequence[Message]]) -> int:
    """Returns the tokens of the first prompt that the chat template accepts: some refuse an empty answer."""
    for conversation in conversations[:-1]:
        with suppress(Refused):
            return len(chat.prompt(conversation))
    return len(chat.prompt(conversations[-1]))
