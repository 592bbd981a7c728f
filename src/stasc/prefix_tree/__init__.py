"""Prefix trees of token sequences: sampling and fine-tuning compute each common prefix once."""

from stasc.prefix_tree.batch import Batch, Example, Logprobs
from stasc.prefix_tree.trie import Trie

__all__ = ["Batch", "Example", "Logprobs", "Trie"]
