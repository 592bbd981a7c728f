"""Rewards: how good an answer is, in [0, 1]."""

from stasc.tasks.rewards.errors import ZeroOnError, inner
from stasc.tasks.rewards.interface import AnyReward, attribute, is_batched
from stasc.tasks.rewards.marker import after_last
from stasc.tasks.rewards.normalisation import normalise
from stasc.tasks.rewards.words import F1, ExactMatch, InAccuracy, WordReward

__all__ = [
    "F1",
    "AnyReward",
    "ExactMatch",
    "InAccuracy",
    "WordReward",
    "ZeroOnError",
    "after_last",
    "attribute",
    "inner",
    "is_batched",
    "normalise",
]
