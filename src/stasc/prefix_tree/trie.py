"""The prefix tree: sequences share the tokens of their common prefixes, and a token attends to its ancestors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from stasc.models.model import Network


class Trie:
    """A prefix tree. Token t has the id `ids[t]` and the parent `parents[t]`, -1 for a root; parents come first."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}  # by parent and id

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Sequence[int]) -> list[int]:
        """Returns the tokens of a sequence, adding those that no earlier sequence has."""
        path, parent = [], -1
        for id_ in ids:
            token = self._children.setdefault((parent, id_), len(self.ids))
            if token == len(self.ids):
                self.ids.append(id_)
                self.parents.append(parent)
            path.append(parent := token)
        return path

    def path(self, token: int) -> list[int]:
        """Returns the tokens from the root to a token, itself included."""
        path = [token]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def depths(self) -> list[int]:
        """Returns the number of ancestors of each token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    def sizes(self) -> list[int]:
        """Returns the size of each token's subtree, itself included."""
        sizes = [1] * len(self)
        for token in range(len(self) - 1, 0, -1):
            if self.parents[token] >= 0:
                sizes[self.parents[token]] += sizes[token]
        return sizes

    def spans(self) -> tuple[Tensor, Tensor]:
        """Returns begin and end (T,) of each token's subtree in depth-first order."""
        sizes, begins, free = self.sizes(), list[int](), 0
        inner: list[int] = []  # begin of each token's next child
        for token, parent in enumerate(self.parents):
            begin = inner[parent] if parent >= 0 else free
            if parent >= 0:
                inner[parent] += sizes[token]
            else:
                free += sizes[token]
            begins.append(begin)
            inner.append(begin + 1)
        begins_T = torch.tensor(begins)
        return begins_T, begins_T + torch.tensor(sizes)

    def attention_mask(self) -> Tensor:
        """Returns the mask (T, T) by which each token attends to its ancestors and itself."""
        begins_T, ends_T = self.spans()
        return (begins_T <= begins_T.unsqueeze(1)) & (begins_T.unsqueeze(1) < ends_T)

    def segments(self) -> list[list[int]]:
        """Splits the tokens into connected segments, each with its ancestors no longer than the longest sequence."""
        depths, sizes, children = self.depths(), self.sizes(), Counter(self.parents)
        longest = max(depths, default=0) + 1
        found: list[list[int]] = []
        segment: list[int] = []  # the segment of each token
        for token, parent in enumerate(self.parents):
            fits = parent >= 0 and depths[parent] + sizes[parent] <= longest
            if fits or (parent >= 0 and children[parent] == 1):
                segment.append(segment[parent])
            else:
                segment.append(len(found))
                found.append([])
            found[segment[token]].append(token)
        return found


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns the length of the common prefix of two sequences."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def partition(sequences: Sequence[Sequence[int]], most_tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Yields parts of the sequences, as indices; sequences with long common prefixes share a part.

    Args:
        most_tokens: maximum tokens of a part's prefix tree, unless it is a single sequence.
        most: maximum sequences of a part.
    """
    part, size = list[int](), 0
    for index in sorted(range(len(sequences)), key=lambda index: (sequences[index], index)):
        ids = sequences[index]
        shared = common_prefix_length(sequences[part[-1]], ids) if part else 0
        grows_too_long = len(ids) > shared and size + len(ids) - shared > most_tokens
        if part and (grows_too_long or len(part) == most):
            yield part
            part, size, shared = [], 0, 0
        part.append(index)
        size += len(ids) - shared
    yield part


def tokens_per_pass(network: Network) -> int:
    """Returns how many tokens to pack into one pass: attention costs a quarter of the FLOPs of matrix products.

    Smaller passes would save attention, but each pass reads all weights and adds to all gradients. Attention in rows
    costs no more, and this bounds its memory too.
    """
    config = network.config.get_text_config()
    matrices = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    embeddings = 2 if not getattr(config, "tie_word_embeddings", False) else 1
    layers = matrices - embeddings * config.vocab_size * config.hidden_size
    per_pair = 4 * config.hidden_size * config.num_hidden_layers  # masked pairs count: their scores are computed too
    return int(max(64, 2 * max(layers, 1) // (4 * per_pair)))
