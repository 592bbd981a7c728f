"""The settings of M_0: where it comes from, its device, its dtype and its chat template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from stasc.machine.paths import path_of
from stasc.models import sources
from stasc.settings.check import expect

if TYPE_CHECKING:
    import torch

    from stasc.models.chat import Chat

_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class ModelConfig:
    """The config group `model`; `sources.fetch` says what `path` may be."""

    path: str
    revision: str | None
    device: str
    dtype: str
    attention: str | None
    chat_template: str | None
    template_args: dict[str, bool | int | str]
    date: str
    cache_dir: str

    def __post_init__(self) -> None:
        expect("model.dtype", self.dtype, self.dtype in _DTYPES, f"one of {', '.join(_DTYPES)}")
        try:
            datetime.fromisoformat(self.date)
        except ValueError as error:
            raise ValueError(f"model.date={self.date}: expected a date such as 2024-07-26") from error

    def fetch(self) -> str:
        """Returns M_0's local folder, made or downloaded if needed. Raises: OSError or ValueError naming the path."""
        base = sources.fetch(self.path, path_of("model.cache_dir", self.cache_dir), self.chat_template)
        if not Path(base).is_dir():
            with reading(self):
                base = sources.snapshot(base, self.revision)
        if not any(Path(base).glob("*.safetensors")):
            raise ValueError(
                f"model.path={self.path}: no .safetensors file in {base}, and pickles, such as pytorch_model.bin, are "
                "never opened: save the model as safetensors"
            )
        return base


@contextmanager
def reading(config: ModelConfig) -> Iterator[None]:
    """Prefixes errors in reading M_0's files, OSError or ValueError, with the setting's name."""
    try:
        yield
    except OSError as error:
        raise OSError(f"model.path={config.path}: {error}") from error
    except ValueError as error:
        reason = str(error)
        if "trust_remote_code" in reason:
            reason = "it needs code that comes with it, which is never run: take a model that transformers supports"
        raise ValueError(f"model.path={config.path}: {reason}") from error


def resolve_device(device: str) -> torch.device:
    """Returns the device of `model.device`. Raises: ValueError if it is unknown or not available."""
    import torch

    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        resolved = torch.device(device)
        if resolved.type not in ("cpu", "cuda"):
            raise RuntimeError("neither a CPU nor CUDA")
    except RuntimeError as error:
        raise ValueError(f"model.device={device}: expected auto, cpu, cuda or cuda:1") from error
    if resolved.type == "cpu":
        return resolved
    if not torch.cuda.is_available():
        raise ValueError(
            f"model.device={device}: torch {torch.__version__} sees no CUDA device; "
            "set model.device=auto or cpu, or install a CUDA build of torch"
        )
    if (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"model.device={device}: there are only {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", resolved.index or 0)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Returns the dtype of `model.dtype`; auto is bfloat16 on CUDA, and float32 on CPUs, as many lack bfloat16."""
    import torch

    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype == "float16" and device.type == "cpu":
        raise ValueError("model.dtype=float16 cannot be trained on the CPU: set model.dtype=auto, or model.device=cuda")
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def load_chat(config: ModelConfig, base: str) -> Chat:
    """Returns the tokenizer of M_0 with its chat template and stop tokens."""
    from transformers import AutoTokenizer, GenerationConfig

    from stasc.models.chat import Chat

    with reading(config):
        try:
            tokenizer = AutoTokenizer.from_pretrained(base, revision=config.revision, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise
            reason = str(error).strip().splitlines()[0].rstrip(": ")
            raise ValueError(
                f"its tokenizer cannot be read ({reason}): expected tokenizer.json and its settings beside the "
                "weights, as save_pretrained writes them"
            ) from error
    stop_ids = {tokenizer.eos_token_id}
    with suppress(OSError):  # generation_config.json is optional
        eos = GenerationConfig.from_pretrained(base, revision=config.revision or "main").eos_token_id
        stop_ids |= set(eos) if isinstance(eos, list) else {eos}
    date = datetime.fromisoformat(config.date)
    return Chat(tokenizer, config.chat_template, config.template_args, stop_ids - {None}, date)
