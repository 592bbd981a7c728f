"""The FLOPs of a forward pass, per token and per attended pair of tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from stasc.models.model import Network


class Costs(NamedTuple):
    """Operations of a forward pass: for each token in the matrices of layers, and for each token that it looks at."""

    token: int
    pair: int


def costs(network: nn.Module) -> Costs:
    """Of a transformer. A mask leaves scores unused, but they are computed."""
    config = network.config.get_text_config()  # type: ignore[operator, union-attr]
    matrices = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    words = 2 if not getattr(config, "tie_word_embeddings", False) else 1
    layers = matrices - words * config.vocab_size * config.hidden_size
    return Costs(2 * max(layers, 1), 4 * config.hidden_size * config.num_hidden_layers)


def worthwhile(network: Network) -> int:
    """How many tokens to compute at once, so that scores between all of them were less than a quarter of the work.

    They may be that much because every further part costs a pass over all weights and their gradients. In rows they are
    fewer, or as many; what is computed at once takes memory all the same.
    """
    cost = costs(network)
    return max(64, cost.token // (4 * cost.pair))
