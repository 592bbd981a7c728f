"""The checked parts of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stasc.algorithm import Init
from stasc.choices.pairing import Pairing, Reward
from stasc.choices.target import Correction, Gold, Initial
from stasc.engines.engine import Engine
from stasc.models.config import ModelConfig
from stasc.models.model import Model
from stasc.records import Split
from stasc.settings.sections import Evaluation, Loop, Sampling, StoreConfig
from stasc.tasks.prompt import Prompt
from stasc.tracking import Off, Wandb, redact
from stasc.training.losses import Loss
from stasc.training.methods import Method

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Experiment:
    """The checked parts of a run: one option per design choice, and the questions."""

    loop: Loop
    sampling: Sampling
    evaluation: Evaluation
    init: Init
    keep: Callable[[float, float], bool]
    start: Callable[[Model, Model], Model]
    target: Correction | Initial | Gold
    finetune: Method
    loss: Loss
    pairing: Pairing
    reward: Reward
    prompt: Prompt
    model: ModelConfig
    engine: Engine
    tracking: Wandb | Off
    store: StoreConfig
    train: Split
    test: Split
    variant: str
    settings: Mapping[str, Any]  # as composed, secrets included
    choices: Mapping[str, str]  # the option of each config group, by name

    @property
    def config(self) -> dict[str, object]:
        """The settings without secrets."""
        return redact(self.settings)
