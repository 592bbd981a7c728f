"""Publishes a run's last model: a folder that transformers 4 and 5 and peft can read, and that names its base model.

Artifacts in the store name no place, so names that depend on the run's settings are written here.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from stasc.machine import durable
from stasc.models.chat import Chat
from stasc.models.config import ModelConfig
from stasc.models.live import LiveModel
from stasc.models.model import M_0, Model

_COMMIT = re.compile("[0-9a-f]{40}")
_SINCE_5 = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend")  # classes that transformers 4 lacks
_OF_LOADING = ("backend", "is_local", "local_files_only")  # describe how the tokenizer was read


def save_model(model: Model, live: LiveModel, chat: Chat, config: ModelConfig, path: Path) -> None:
    """Writes a model for `from_pretrained`, with its tokenizer, chat template and stop tokens."""
    scratch = path.with_name(f"{durable.SCRATCH}{path.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if model != M_0:
        live.before_read(model)
    base = Path(live.base)
    for file in (model.adapter or model.weights or base).iterdir():
        if file.suffix in (".safetensors", ".json"):
            durable.clone(file, scratch / file.name)
    with durable.naming(path):
        chat.tokenizer.save_pretrained(scratch)
    if model.adapter:
        named = {"base_model_name_or_path": config.path, "revision": _revision(config, base)}
        _rewrite(scratch / "adapter_config.json", lambda settings: {**settings, **named})
    else:
        _rewrite(scratch / "config.json", config_for_4)
    _rewrite(scratch / "tokenizer_config.json", lambda settings: tokenizer_for_4(settings, scratch))
    if not (stops := scratch / "generation_config.json").exists():
        given = base / stops.name
        stops.write_bytes(given.read_bytes() if given.exists() else b"{}")
    ends = sorted(chat.stop_ids)
    _rewrite(stops, lambda settings: {**settings, "eos_token_id": ends if len(ends) > 1 else ends[0]})
    durable.publish_modes(scratch)
    durable.sync_tree(scratch)
    shutil.rmtree(path, ignore_errors=True)
    durable.replace(scratch, path)


def _revision(config: ModelConfig, base: Path) -> str | None:
    """Returns the commit of a hub model, which is the name of its folder in the hub's cache, or the setting."""
    return base.name if base.parent.name == "snapshots" and _COMMIT.fullmatch(base.name) else config.revision


def config_for_4(settings: dict[str, Any]) -> dict[str, Any]:
    """Adds the names that transformers 4 knows to a model's settings: for missing ones it takes defaults silently."""
    old = {"torch_dtype": settings["dtype"]} if "dtype" in settings else {}
    rope = settings.get("rope_parameters") or {}
    whole = rope.get("full_attention", rope)
    if "rope_theta" in whole:
        scaling = {name: value for name, value in whole.items() if name not in ("rope_theta", "partial_rotary_factor")}
        scaled = scaling.get("rope_type", "default") != "default"
        old |= {"rope_theta": whole["rope_theta"], "rope_scaling": scaling if scaled else None}
    if "partial_rotary_factor" in whole:
        old["partial_rotary_factor"] = whole["partial_rotary_factor"]
    if "sliding_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    return {**old, **settings}


def tokenizer_for_4(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a tokenizer's settings with the class and names that transformers 4 knows."""
    settings = {name: value for name, value in settings.items() if name not in _OF_LOADING}
    if settings.get("tokenizer_class") in _SINCE_5 and (folder / "tokenizer.json").exists():
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if (template := folder / "chat_template.jinja").exists():
        settings["chat_template"] = template.read_text(encoding="utf-8")
    return settings


def _rewrite(path: Path, change: Any) -> None:
    """Changes the settings in a JSON file, if it exists."""
    if path.exists():
        before = json.loads(path.read_bytes())
        if (after := change(before)) != before:
            path.write_text(json.dumps(after, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
