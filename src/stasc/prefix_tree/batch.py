"""Batches of examples, as padded rows or as a prefix tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stasc.prefix_tree.masks import Mask, mask_arguments
from stasc.prefix_tree.trie import Trie


@dataclass(frozen=True)
class Example:
    """The token ids of one training pair: the conversation up to the correction, and the correction, which is trained.

    `id` names the pair in messages; `r1` and `r2` are its rewards.
    """

    id: str
    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    r1: float = 0.0
    r2: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Arguments of a network for some examples, and the logits that predict their trained tokens.

    Edge e of the prefix tree (of E) is the token `labels[e]`, predicted by the logits at `rows[e]`, `columns[e]`.
    `edges` (on the CPU) holds the edge of each trained token, example by example: several examples may share an edge.
    """

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    labels: Tensor
    edges: Tensor
    examples: Sequence[Example]

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with its inputs and labels on a device."""
        moved = {name: value.to(device) if hasattr(value, "to") else value for name, value in self.inputs.items()}
        tensors = {name: getattr(self, name).to(device) for name in ("rows", "columns", "labels")}
        return replace(self, inputs=moved, **tensors)


def collate(examples: Sequence[Example]) -> Batch:
    """Returns a batch with one row per example, padded on the left, so that the last columns hold all logits needed."""
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
        edges=torch.arange(sum(lengths)),
        examples=list(examples),
    )


def tree(examples: Sequence[Example], mask: Mask, device: torch.device | str = "cpu") -> Batch:
    """Returns a batch with the prefix tree of some examples in one row.

    Args:
        mask: the kind of mask, as `as_mask` takes it, or "rows" for `attention.TREE_ATTENTION`.
        device: of the mask, which `Batch.to` may be unable to move. All other tensors are on the CPU.
    """
    trie = Trie()
    edges: dict[tuple[int, int], int] = {}  # indices, by node and next id
    of_token = []
    for example in examples:
        path = trie.add(example.prompt + example.completion[:-1])  # the last token is predicted, and predicts nothing
        for edge in zip(path[len(example.prompt) - 1 :], example.completion, strict=True):
            of_token.append(edges.setdefault(edge, len(edges)))

    kept = list(dict.fromkeys(node for node, _ in edges))
    column = {node: k for k, node in enumerate(kept)}
    return Batch(
        inputs={
            "input_ids": torch.tensor([trie.ids]),
            "position_ids": torch.tensor([trie.depths()]),
            **mask_arguments(trie, mask, device),
            "logits_to_keep": torch.tensor(kept),
        },
        rows=torch.zeros(len(edges), dtype=torch.int64),
        columns=torch.tensor([column[node] for node, _ in edges]),
        labels=torch.tensor([id_ for _, id_ in edges]),
        edges=torch.tensor(of_token),
        examples=list(examples),
    )
