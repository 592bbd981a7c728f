"""Losses: what an optimizer step of fine-tuning minimises.

A loss of your own is a class with `__call__` as in `Loss`, and a YAML file in `conf/loss/` that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stasc.settings.check import expect

if TYPE_CHECKING:  # torch is not imported before all settings are checked
    from torch import Tensor

    from stasc.prefix_tree.batch import Example, Logprobs

_PER = ("token", "example")


class Loss(Protocol):
    """A loss, computed micro-batch by micro-batch: the shares of a step's micro-batches add up to its loss."""

    def __call__(self, logp: Logprobs, step: Sequence[Example]) -> Tensor:
        """Returns the share of one micro-batch in the loss of its optimizer step.

        Args:
            logp: the log-likelihoods of the micro-batch, and its examples.
            step: the examples of all the step's micro-batches, for normalisation.
        """
        ...


@dataclass(frozen=True)
class NLL:
    """The mean negative log-likelihood of the corrections, per trained `token` or per `example`."""

    per: str

    def __post_init__(self) -> None:
        expect("loss.per", self.per, self.per in _PER, f"one of {', '.join(_PER)}")

    def __call__(self, logp: Logprobs, step: Sequence[Example]) -> Tensor:
        """Returns the share of one micro-batch in the mean over the step."""
        if self.per == "token":
            weights = [1 / sum(len(example.completion) for example in step)] * len(logp.examples)
        else:
            weights = [1 / len(example.completion) / len(step) for example in logp.examples]
        return -logp.weighted(weights)
