"""Rewards: how good an answer is, in [0, 1]."""

from stasc.tasks.rewards.interface import ZeroOnError, attribute
from stasc.tasks.rewards.normalisation import normalise
from stasc.tasks.rewards.words import F1, ExactMatch, InAccuracy, WordReward, after_last

__all__ = ["F1", "ExactMatch", "InAccuracy", "WordReward", "ZeroOnError", "after_last", "attribute", "normalise"]
