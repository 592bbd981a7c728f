"""The checked parts of one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stasc.choices.filter import Filter, Option, by_pair
from stasc.choices.init import Init
from stasc.choices.pairing import Pairing
from stasc.choices.start import Start
from stasc.choices.target import Target
from stasc.engines.engine import Engine
from stasc.models.config import ModelConfig
from stasc.records import Answer, Pair, Question, Split
from stasc.settings.sections import Evaluation, Loop, Sampling, StoreConfig
from stasc.tasks.prompt import Conversations
from stasc.tasks.rewards.interface import AnyReward
from stasc.tracking import Off, Wandb, redact
from stasc.training.losses import Loss
from stasc.training.methods import Method


@dataclass(frozen=True)
class Experiment:
    """The checked parts of a run: one option per design choice, and the questions."""

    loop: Loop
    sampling: Sampling
    evaluation: Evaluation
    init: Init
    filter: Option
    keep: Filter  # the filter as a function of a pair
    start: Start
    target: Target
    finetune: Method
    loss: Loss
    pairing: Pairing
    reward: AnyReward
    prompt: Conversations
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


def check_target(target: Target, option: Option, pairing: str, questions: Iterable[Question]) -> None:
    """Checks that the filter and the pairing can keep something for a target without corrections.

    The filter is tried on right answers to the training questions, a short and a long one each.
    Raises: ValueError naming the setting to change.
    """
    if target.corrects:
        return
    name = type(target).__name__.lower()
    if pairing != "own":
        raise ValueError(f"pairing={pairing} pairs corrections, but target={name} samples none: set pairing=own")
    if not any(map(by_pair(option), _right_pairs(questions))):
        raise ValueError(
            f"filter={type(option).__name__.lower()} keeps nothing with target={name}, where y2 is y1: set "
            "filter=lenient to keep right answers, or filter=all"
        )


def _right_pairs(questions: Iterable[Question]) -> Iterator[Pair]:
    for question in questions:
        for text in (question.references[0], 99 * question.text):
            answer = Answer(text, len(text.split()))
            yield Pair(question, 0, 0, 0, answer, answer, 1.0, 1.0)
