"""What a step of fine-tuning minimises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stasc.prefix_tree.batch import Example

if TYPE_CHECKING:
    pass


def loss_weights(examples: Sequence[Example], per: str) -> list[float]:
    """What each trained token of an example weighs in a step's loss, which is a mean per `token` or per `example`."""
    if per == "token":
        return [1 / sum(len(example.completion) for example in examples)] * len(examples)
    return [1 / len(example.completion) / len(examples) for example in examples]
