"""Names of models: base weights, with or without an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Network: TypeAlias = "PreTrainedModel | PeftModel"


@dataclass(frozen=True)
class Model:
    """A model of the run, named by its folders. `key` is the digest of everything that decides its weights."""

    weights: Path | None = None  # None: the weights of M_0
    adapter: Path | None = None
    key: str = field(default="", compare=False)


M_0 = Model()
