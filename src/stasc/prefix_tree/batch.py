"""Batches of examples, as padded rows or as a prefix tree, and the log-likelihoods of their trained tokens.

Shapes: B rows of K logits over V tokens, E edges of the prefix tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stasc.prefix_tree.attention import Mask, mask_arguments
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
        mask: the kind of mask, as `mask_arguments` takes it.
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


@dataclass(frozen=True)
class Logprobs:
    """The log-likelihood of each trained token of `batch`, computed once per edge of the prefix tree.

    Every method counts an edge once for each example that has it.
    """

    batch: Batch
    edges_E: Tensor  # float32 or wider

    @property
    def examples(self) -> Sequence[Example]:
        """The examples of the micro-batch, in the order of all results."""
        return self.batch.examples

    def tokens(self) -> tuple[Tensor, ...]:
        """Returns one tensor per example: the log-likelihoods of its trained tokens."""
        tokens = self.edges_E[self.batch.edges.to(self.edges_E.device)]
        found: tuple[Tensor, ...] = tokens.split([len(example.completion) for example in self.examples])
        return found

    def by_example(self) -> Tensor:
        """Returns the log-likelihood of each example's whole completion."""
        return torch.stack([tokens.sum() for tokens in self.tokens()])

    def weighted(self, weights: Sequence[float]) -> Tensor:
        """Returns the sum over trained tokens, each times the weight of its example.

        The weights of an edge are added up in float64 on the CPU, in a fixed order, before they meet the edge.
        """
        edges = self._weights(weights).to(self.edges_E.device)
        return (self.edges_E * edges.to(self.edges_E.dtype)).sum()

    def total(self) -> Tensor:
        """Returns the sum over trained tokens in float64, without gradient."""
        counts = self._weights([1.0] * len(self.examples)).to(self.edges_E.device)
        return (self.edges_E.detach().double() * counts).sum()

    def _weights(self, weights: Sequence[float]) -> Tensor:
        lengths = torch.tensor([len(example.completion) for example in self.examples])
        by_token = torch.tensor(weights, dtype=torch.float64).repeat_interleave(lengths)
        return torch.zeros(len(self.edges_E), dtype=torch.float64).index_add_(0, self.batch.edges, by_token)


def logprobs(network: nn.Module, batch: Batch) -> Logprobs:
    """Computes the log-likelihoods of a batch's trained tokens. Only the logits that predict them are computed."""
    logits_BKV = network(**batch.inputs, use_cache=False).logits
    rows, columns = batch.rows, batch.columns
    if len(rows) < logits_BKV.shape[:-1].numel():  # padding has logits as well
        logits_BKV = logits_BKV[rows, columns].unsqueeze(0)
        rows, columns = torch.zeros_like(rows), torch.arange(len(rows), device=rows.device)
    logits_BKV = logits_BKV.to(torch.promote_types(logits_BKV.dtype, torch.float32))
    return Logprobs(batch, log_likelihood(logits_BKV, rows, columns, batch.labels))


def log_likelihood(logits_BKV: Tensor, rows_E: Tensor, columns_E: Tensor, labels_E: Tensor) -> Tensor:
    """Returns the log-softmax of some logits at (row, column, label), as (E,), without a copy of the logits."""
    found_E: Tensor = _LogLikelihood.apply(logits_BKV, rows_E, columns_E, labels_E)
    return found_E


class _LogLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_BKV: Tensor, rows_E: Tensor, columns_E: Tensor, labels_E: Tensor) -> Tensor:
        logp_BKV = logits_BKV.log_softmax(-1)
        ctx.save_for_backward(logp_BKV, rows_E, columns_E, labels_E)
        return logp_BKV[rows_E, columns_E, labels_E]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (logp_BKV, rows_E, columns_E, labels_E), (gradient_E,) = ctx.saved_tensors, gradients
        weights_BK = gradient_E.new_zeros(logp_BKV.shape[:-1])
        weights_BK.index_put_((rows_E, columns_E), -gradient_E, accumulate=True)
        found_BKV = logp_BKV.exp().mul_(weights_BK.unsqueeze(-1))
        found_BKV.index_put_((rows_E, columns_E, labels_E), gradient_E, accumulate=True)
        return found_BKV, None, None, None
