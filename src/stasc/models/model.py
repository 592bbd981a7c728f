"""What a model of the run is: base weights, or base weights plus an adapter."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    Network: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Model:
    """Names a model of the run: M_0's weights or a folder of others, without or with an adapter."""

    weights: Path | None = None  # null: those of M_0
    adapter: Path | None = None
    key: str = field(default="", compare=False)  # what it was derived from


M_0 = Model()
