"""The fine-tuning step of Algorithm 1: M_n from a start model and the kept pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stasc.machine import durable
from stasc.prefix_tree.batch import Example
from stasc.records import Advance
from stasc.training.losses import Loss
from stasc.training.methods import Method, Training

if TYPE_CHECKING:
    from stasc.models.live import LiveModel
    from stasc.models.model import Model


def finetune(
    method: Method,
    loss: Loss,
    live: LiveModel,
    start: Model,
    examples: Sequence[Example],
    folder: Path,
    seed: int,
    advance: Advance,
) -> tuple[Model, Training]:
    """Trains `start` on some examples and writes the result to `folder`. The trained network stays in memory."""
    from stasc.training import loop  # a run that has everything in its store does without

    network = method.network(live, start, seed)
    training = loop.train(network, examples, method, loss, live, seed, advance)
    with durable.naming(folder):
        method.save(network, folder)
    model = method.model(start, folder)
    live.adopt(model, network, live.dtype if method.adapter else live.training_dtype)
    return model, training
