"""Examples as a network computes them: padded rows, or a prefix tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stasc.prefix_tree.masks import Mask, attended
from stasc.prefix_tree.trie import Trie


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation up to the correction, and of the correction, which is what is trained."""

    id: str  # names it in messages
    prompt: tuple[int, ...]
    completion: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Examples as a network computes them: `inputs` are its arguments, and the rest says what is trained.

    Trained token e (of E) has the id `labels[e]`, is predicted by the logits at `rows[e]`, `columns[e]`, weighs
    `weights[e]` in the loss, and is that of `counts[e]` examples.
    """

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    labels: Tensor
    weights: Tensor
    counts: Tensor
    examples: Sequence[Example]

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.inputs.items()}
        tensors = {name: getattr(self, name).to(device) for name in ("rows", "columns", "labels", "weights", "counts")}
        return replace(self, inputs=moved, **tensors)


def collate(examples: Sequence[Example], weights: Sequence[float]) -> Batch:
    """A batch with a row for each example, padded on the left: all logits that are needed stand in the last columns.

    Args:
        weights: of each trained token of an example.
    """
    whole = [example.prompt + example.completion[:-1] for example in examples]
    width = max(len(ids) for ids in whole)
    kept = max(len(example.completion) for example in examples)

    def left_padded(rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])

    mask_BT = left_padded([[1] * len(ids) for ids in whole])
    lengths = [len(example.completion) for example in examples]
    return Batch(
        inputs={
            "input_ids": left_padded(whole),
            "attention_mask": mask_BT,
            "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0),
            "logits_to_keep": kept,
        },
        rows=torch.tensor([row for row, length in enumerate(lengths) for _ in range(length)]),
        columns=torch.tensor([column for length in lengths for column in range(kept - length, kept)]),
        labels=torch.tensor([id_ for example in examples for id_ in example.completion]),
        weights=torch.tensor(weights, dtype=torch.float64).repeat_interleave(torch.tensor(lengths)),
        counts=torch.ones(sum(lengths), dtype=torch.float64),
        examples=list(examples),
    )


def tree(
    examples: Sequence[Example], weights: Sequence[float], mask: Mask, device: torch.device | str = "cpu"
) -> Batch:
    """The tree of some examples.

    Args:
        weights: of each trained token of an example; one that several examples have gets the sum.
        mask: as `as_mask` takes it, or rows for `attention.IN_ROWS`.
        device: of the mask, which may not move. The rest is on the CPU.
    """
    trie = Trie()
    edges: dict[tuple[int, int], list[float]] = {}  # by token and next id: weight and count
    for example, weight in zip(examples, weights, strict=True):
        path = trie.add(example.prompt + example.completion[:-1])  # the last token is predicted, and predicts nothing
        for at, id_ in zip(path[len(example.prompt) - 1 :], example.completion, strict=True):
            edge = edges.setdefault((at, id_), [0.0, 0.0])
            edge[0] += weight
            edge[1] += 1

    kept = list(dict.fromkeys(at for at, _ in edges))
    place = {at: k for k, at in enumerate(kept)}
    return Batch(
        inputs={
            "input_ids": torch.tensor([trie.ids]),
            "position_ids": torch.tensor([trie.depths()]),
            **attended(trie, mask, device),
            "logits_to_keep": torch.tensor(kept),
        },
        rows=torch.zeros(len(edges), dtype=torch.int64),
        columns=torch.tensor([place[at] for at, _ in edges]),
        labels=torch.tensor([id_ for _, id_ in edges]),
        weights=torch.tensor([weight for weight, _ in edges.values()], dtype=torch.float64),
        counts=torch.tensor([count for _, count in edges.values()], dtype=torch.float64),
        examples=list(examples),
    )
