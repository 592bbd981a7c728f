"""Sequences of tokens as a tree: what several begin with stands once, and a token sees what leads to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Trie:
    """Tokens by index, parents before children: `ids`, and `parents`, -1 for a root."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}  # by parent and id

    def __len__(self) -> int:
        return len(self.ids)

    def child(self, at: int, id_: int) -> int:
        """The index of what follows token `at` with this id; new if there was none."""
        found = self._children.setdefault((at, id_), len(self.ids))
        if found == len(self.ids):
            self.ids.append(id_)
            self.parents.append(at)
        return found

    def add(self, ids: Sequence[int]) -> list[int]:
        """The indices of a sequence's tokens, new ones where nothing before had them."""
        path, at = [], -1
        for id_ in ids:
            path.append(at := self.child(at, id_))
        return path

    def path(self, token: int) -> list[int]:
        """What leads to a token, and itself."""
        path = [token]
        while self.parents[path[-1]] >= 0:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def depths(self) -> list[int]:
        """How many tokens lead to each."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(depths[parent] + 1 if parent >= 0 else 0)
        return depths

    def sizes(self) -> list[int]:
        """How many tokens each leads to, itself included."""
        sizes = [1] * len(self)
        for token in range(len(self) - 1, 0, -1):
            if self.parents[token] >= 0:
                sizes[self.parents[token]] += sizes[token]
        return sizes

    def spans(self) -> tuple[Tensor, Tensor]:
        """Begin and end (T,) of each token: it leads to those that begin in between."""
        import torch

        sizes, begins, free = self.sizes(), list[int](), 0
        inner: list[int] = []  # where the next child of each begins
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

    def seen(self) -> Tensor:
        """Which tokens (T, T) each one has seen: itself, and those that lead to it."""
        begins_T, ends_T = self.spans()
        return (begins_T <= begins_T.unsqueeze(1)) & (begins_T.unsqueeze(1) < ends_T)

    def pieces(self) -> list[list[int]]:
        """The tokens in pieces, none of which is longer than the longest sequence, with what leads to it."""
        depths, sizes, children = self.depths(), self.sizes(), Counter(self.parents)
        longest = max(depths, default=0) + 1
        found: list[list[int]] = []
        piece: list[int] = []  # of each token
        for token, parent in enumerate(self.parents):
            whole = parent >= 0 and depths[parent] + sizes[parent] <= longest
            if whole or (parent >= 0 and children[parent] == 1):
                piece.append(piece[parent])
            else:
                piece.append(len(found))
                found.append([])
            found[piece[token]].append(token)
        return found


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def parts(sequences: Sequence[Sequence[int]], most_tokens: int, most: int | None = None) -> Iterator[list[int]]:
    """Parts of some sequences, as indices, whose trees have at most so many tokens, or a single sequence.

    Those that share most stand together.

    Args:
        most: how many sequences a part has at most.
    """
    part: list[int] = []
    size = 0
    for index in sorted(range(len(sequences)), key=lambda index: (sequences[index], index)):
        ids = sequences[index]
        shared = common(sequences[part[-1]], ids) if part else 0
        grows_too_long = len(ids) > shared and size + len(ids) - shared > most_tokens
        if part and (grows_too_long or len(part) == most):
            yield part
            part, size, shared = [], 0, 0
        part.append(index)
        size += len(ids) - shared
    yield part
