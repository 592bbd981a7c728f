"""Estimates the FLOPs of a forward pass, per token and per pair of tokens in attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

    from stasc.models.model import Network


class Costs(NamedTuple):
    """FLOPs of a forward pass: `token` in weight matrices per token, `pair` in attention per query and key."""

    token: int
    pair: int


def costs(network: nn.Module) -> Costs:
    """Returns the FLOPs of one forward pass. Masked pairs count, as their scores are computed too."""
    config = network.config.get_text_config()  # type: ignore[operator, union-attr]
    matrices = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    embeddings = 2 if not getattr(config, "tie_word_embeddings", False) else 1
    layers = matrices - embeddings * config.vocab_size * config.hidden_size
    return Costs(2 * max(layers, 1), 4 * config.hidden_size * config.num_hidden_layers)


def tokens_per_pass(network: Network) -> int:
    """Returns how many tokens to pack into one pass: their attention costs a quarter of their matrix products.

    Smaller passes would save attention, but each pass reads all weights and adds to all gradients. Attention in rows
    costs no more, and this bounds its memory too.
    """
    cost = costs(network)
    return max(64, cost.token // (4 * cost.pair))
