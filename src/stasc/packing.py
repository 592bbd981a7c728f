"""Examples as a tree of tokens: what several have in common from their beginning on is computed once.

The corrections of a question share their prompt, equal ones all of themselves, and all prompts the system's turn. A
token attends to what leads to it from the root, and its position is its depth, so it is computed as it would be in a
row of its own; a trained token counts once for each example that has it.

Shapes: T tokens of the tree, K of them that predict a trained token, E edges that are trained (a token and one that
follows it), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING

import torch

from stasc.finetune import Batch, Example, collate, token_losses

if TYPE_CHECKING:
    from torch import Tensor

    from stasc.model import Network


def tree(examples: Sequence[Example], weights: Sequence[float], mask: torch.dtype) -> Batch:
    """The tree of some examples.

    Args:
        weights: of each trained token of an example; one that several examples have gets the sum.
        mask: bool, or the dtype of a mask that is added to the scores.
    """
    ids: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}  # by parent and id
    edges: dict[tuple[int, int], list[float]] = {}  # by token and next id: weight and count

    def child(at: int, id_: int) -> int:
        found = children.setdefault((at, id_), len(ids))
        if found == len(ids):
            ids.append(id_)
            parents.append(at)
        return found

    for example, weight in zip(examples, weights, strict=True):
        at = -1
        for id_ in example.prompt:
            at = child(at, id_)
        for left, id_ in zip(range(len(example.completion) - 1, -1, -1), example.completion, strict=True):
            edge = edges.setdefault((at, id_), [0.0, 0.0])
            edge[0] += weight
            edge[1] += 1
            if left:  # the last token is predicted, and predicts nothing
                at = child(at, id_)

    kept = list(dict.fromkeys(at for at, _ in edges))
    place = {at: k for k, at in enumerate(kept)}
    seen_TT = _ancestors(parents)
    return Batch(
        inputs={
            "input_ids": torch.tensor([ids]),
            "position_ids": (seen_TT.sum(1) - 1).unsqueeze(0),
            "attention_mask": _as(mask, seen_TT)[None, None],
            "logits_to_keep": torch.tensor(kept),
        },
        rows=torch.zeros(len(edges), dtype=torch.int64),
        columns=torch.tensor([place[at] for at, _ in edges]),
        labels=torch.tensor([id_ for _, id_ in edges]),
        weights=torch.tensor([weight for weight, _ in edges.values()], dtype=torch.float64),
        counts=torch.tensor([count for _, count in edges.values()], dtype=torch.float64),
        examples=list(examples),
    )


def parts(examples: Sequence[Example], most_tokens: int, most_examples: int | None) -> Iterator[list[int]]:
    """Parts of a batch, as indices, whose trees have at most so many tokens, or a single example.

    Those that share most stand together.
    """
    whole = [example.prompt + example.completion[:-1] for example in examples]
    part: list[int] = []
    size = 0
    for index in sorted(range(len(examples)), key=lambda index: (whole[index], index)):
        ids = whole[index]
        shared = common(whole[part[-1]], ids) if part else 0
        grows_too_long = len(ids) > shared and size + len(ids) - shared > most_tokens
        if part and (grows_too_long or len(part) == most_examples):
            yield part
            part, size, shared = [], 0, 0
        part.append(index)
        size += len(ids) - shared
    yield part


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def mask_dtype(network: Network, dtype: torch.dtype, longest: int) -> torch.dtype | None:
    """What masks of a tree are for this network, which computes in `dtype`; None if its attention takes none.

    A window of attention shorter than the `longest` example would be lost. For the rest, that is seen from short
    examples: some models attend by other means than masks, or have positions of their own.
    """
    config = network.config.get_text_config()
    attention, window = getattr(config, "_attn_implementation", None), getattr(config, "sliding_window", None)
    if attention not in ("sdpa", "eager") or (window or longest) < longest:
        return None
    mask = torch.bool if attention == "sdpa" else dtype
    examples = [Example("", (1, 2, 3), (4, 5, 6)), Example("", (1, 2, 3), (4, 6, 7)), Example("", (1, 8, 2), (9, 3, 5))]
    weights = [1.0] * len(examples)
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad(), suppress(RuntimeError, ValueError, TypeError):
            packed, rows = (
                (batch.weights * token_losses(network, batch)).sum()
                for batch in (
                    batch.to(network.device) for batch in (tree(examples, weights, mask), collate(examples, weights))
                )
            )
            return mask if torch.allclose(packed, rows, rtol=1e-4 if dtype.itemsize > 2 else 0.05) else None
    finally:
        network.train(was_training)
    return None


def worthwhile(network: Network) -> int:
    """How many tokens to compute at once, so that scores between branches are less than a tenth of the work.

    A tree's mask leaves them unused, but they are computed: 4 T hidden layers operations a token, beside 2 for each
    weight.
    """
    config = network.config.get_text_config()
    weights = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    return max(64, int(0.05 * weights / (config.hidden_size * config.num_hidden_layers)))


def _ancestors(parents: Sequence[int]) -> Tensor:
    """Which tokens (T, T) each one has seen: itself, and those that its parent has. Parents come before children."""
    seen_TT = torch.eye(len(parents), dtype=torch.bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            seen_TT[token] |= seen_TT[parent]
    return seen_TT


def _as(dtype: torch.dtype, seen: Tensor) -> Tensor:
    if dtype == torch.bool:
        return seen
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
