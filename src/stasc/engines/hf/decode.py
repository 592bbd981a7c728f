"""One batch of answers from a transformers model.

Each distinct prompt is computed once for all its samples, and so is all that samples of a prompt go on alike with: a
line stands for all rows that have drawn the same tokens so far.

Shapes: B rows (one per sample), L lines, V vocabulary, K candidates, R lines or rows of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stasc.engines import noise
from stasc.engines.engine import Completion, Decoding
from stasc.engines.hf import prefill
from stasc.errors import NonFiniteError
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.models.model import Network

_FIRST_CANDIDATES = 128
_DRAWN_AT_ONCE = 2**21  # logits: drawing takes several times their memory
_COLDEST = torch.finfo(torch.float32).tiny  # temperature; what is below is greedy
_COLD = 1e-20  # temperature; logits divided by less may overflow
_LEAVE_TOGETHER = 1 / 8  # of the lines: to be rid of some takes an operation or more for each layer


class NonFiniteLogits(NonFiniteError):
    """The logits of some rows' next token are not finite where it matters. `rows` are their indices."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"logits that are not finite, in rows {', '.join(map(str, rows))}")
        self.rows = list(rows)


def sample_batch(
    model: Network,
    prompts: Sequence[tuple[int, ...]],
    keys: Sequence[int],
    decoding: Decoding,
    advance: Advance,
    prefill_tokens: int,
    begun: Sequence[tuple[int, ...]] = (),
) -> list[Completion]:
    """One completion per row, for its prompt and noise key.

    Args:
        begun: the tokens that each row has drawn before, which are a part of its prompt and of its completion. All rows
            have as many; none where it is empty.
    Raises: NonFiniteLogits if the model is broken.
    """
    device = model.device
    logits_LV, lines, batch = prefill.prefill(model, prompts, decoding.max_new_tokens, prefill_tokens)
    keys_B = torch.tensor(keys, dtype=torch.int64, device=device)
    sampled = [list(ids) for ids in begun] if begun else [list[int]() for _ in prompts]
    first = len(sampled[0])
    rows = list(range(len(prompts)))  # that go on

    for position in range(decoding.max_new_tokens):
        line_B = torch.tensor(lines, device=device)
        logits_LV = with_text(logits_LV, decoding)
        try:
            drawn = draw(logits_LV, line_B, keys_B, first + position, decoding.temperature, decoding.top_p).tolist()
        except NonFiniteLogits as error:
            raise NonFiniteLogits([rows[index] for index in error.rows]) from None
        for row, id_ in zip(rows, drawn, strict=True):
            sampled[row].append(id_)
        going = [index for index, id_ in enumerate(drawn) if id_ not in decoding.stop_ids]
        if decoding.stopped is not None:
            going = [index for index in going if not decoding.stopped(sampled[rows[index]])]
        rows = [rows[index] for index in going]
        if len(rows) < len(drawn):
            advance(len(drawn) - len(rows))
        if position + 1 == decoding.max_new_tokens or not rows:
            break
        pairs = [(lines[index], drawn[index]) for index in going]
        continued = branch(pairs, len(logits_LV))
        line = {pair: line for line, pair in enumerate(continued)}
        lines, keys_B = [line[pair] for pair in pairs], keys_B[torch.tensor(going, device=device)]
        parent_L, ids_L = torch.tensor(continued, device=device).unbind(1)
        if [parent for parent, _ in continued] != list(range(len(logits_LV))):
            batch.select(parent_L)
        logits_LV = batch.forward(model, ids_L).logits[:, -1]
    advance(len(rows))
    unended = set(rows)
    return [Completion(tuple(ids), row in unended) for row, ids in enumerate(sampled)]


def branch(pairs: Sequence[tuple[int, int]], had: int) -> list[tuple[int, int]]:
    """The lines to go on with, each the line that it comes from and its token.

    Most stay in their places, as to move one costs a copy. Lines that no row is in any more are left where they are
    until they are many.

    Args:
        pairs: line and token of each row; rows with the same go on in one line.
        had: how many lines there were.
    """
    wanted = list(dict.fromkeys(pairs))
    few_left = 0 <= had - len(wanted) < _LEAVE_TOGETHER * had
    lines = dict[int, tuple[int, int]]()
    size = had if few_left else len(wanted)
    for pair in wanted:
        if pair[0] < size:
            lines.setdefault(pair[0], pair)
    free = [line for line in range(size) if line not in lines]
    moved = [pair for pair in wanted if lines.get(pair[0]) != pair]
    lines |= zip(free, moved, strict=False)  # there is a free one for each
    return [lines.get(line, (line, 0)) for line in range(size)]


def with_text(logits_LV: Tensor, decoding: Decoding) -> Tensor:
    """Returns the logits without ids that the tokenizer lacks: those at the end are cut off, others are -inf."""
    if decoding.drawable is None:
        return logits_LV
    end, holes = _known(decoding.drawable, logits_LV.shape[1])
    logits_LV = logits_LV[:, :end]
    if not holes:
        return logits_LV
    return logits_LV.index_fill(1, torch.tensor(holes, device=logits_LV.device), float("-inf"))


@lru_cache(maxsize=4)
def _known(ids: frozenset[int], size: int) -> tuple[int, tuple[int, ...]]:
    """Returns one past the largest known id of a model, and the unknown ids below it."""
    known = {id_ for id_ in ids if id_ < size}
    end = max(known) + 1
    return end, tuple(id_ for id_ in range(end) if id_ not in known)


def draw(logits_LV: Tensor, line_B: Tensor, keys_B: Tensor, position: int, temperature: float, top_p: float) -> Tensor:
    """The next token of each row, int64 (B,): Gumbel-max over the nucleus of softmax(logits / temperature).

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p` (Holtzman et al.,
    arXiv 1904.09751). Temperature 0 is the most probable token.

    Raises: NonFiniteLogits if a row's logits have NaN or infinity, or are all minus infinity. One that is drawn is the
        largest, and NaN counts as larger than any, so that only these are looked at.
    """
    if temperature < _COLDEST:
        chosen_L = logits_LV.argmax(-1)
        _expect_finite(logits_LV.gather(1, chosen_L.unsqueeze(1)).squeeze(1)[line_B])
        return chosen_L[line_B]
    chosen_B = torch.empty_like(keys_B)
    value_B = torch.empty(keys_B.shape, dtype=torch.float64, device=keys_B.device)  # of the chosen, with its noise
    every = torch.arange(len(keys_B), device=keys_B.device)
    if top_p >= 1:
        for rows in every.split(_rows_at_once(logits_LV)):
            noise_RV = noise.gumbel_all(keys_B[rows], position, logits_LV.shape[1])
            noisy_RV = _scaled(logits_LV[line_B[rows]], temperature) + noise_RV
            chosen_B[rows] = noisy_RV.argmax(-1)
            value_B[rows] = noisy_RV.gather(1, chosen_B[rows].unsqueeze(1)).squeeze(1)
        _expect_finite(value_B)
        return chosen_B
    for lines_R, values_RK, ids_RK in nuclei(logits_LV, temperature, top_p):
        rank_L = torch.full_like(logits_LV[:, 0], -1, dtype=torch.int64)  # among these
        rank_L[lines_R] = torch.arange(len(lines_R), device=lines_R.device)
        rank_B = rank_L[line_B]
        for rows in every[rank_B >= 0].split(max(1, _DRAWN_AT_ONCE // ids_RK.shape[1])):
            some_RK = ids_RK[rank_B[rows]]
            noisy_RK = values_RK[rank_B[rows]] + noise.gumbel(keys_B[rows], position, some_RK)
            place_R1 = noisy_RK.argmax(-1, keepdim=True)
            chosen_B[rows] = some_RK.gather(1, place_R1).squeeze(1)
            value_B[rows] = noisy_RK.gather(1, place_R1).squeeze(1)
    _expect_finite(value_B)
    return chosen_B


def _expect_finite(value_B: Tensor) -> None:
    finite_B = value_B.isfinite()
    if not finite_B.all():
        raise NonFiniteLogits((~finite_B).nonzero().flatten().tolist())


def nuclei(logits_LV: Tensor, temperature: float, top_p: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the nucleus of every line, by groups of R with nuclei of like size.

    Returns: the lines (R,); their nuclei as logits by temperature, and token ids (R, K), most probable first, the
        logits -inf where a line's nucleus has fewer than K tokens. No line is sorted much further than its nucleus
        reaches.
    """
    vocabulary = logits_LV.shape[1]
    lines_R = torch.arange(len(logits_LV), device=logits_LV.device)
    k = min(_FIRST_CANDIDATES, vocabulary)
    while len(lines_R):
        wider = []
        for some_R in lines_R.split(max(1, _DRAWN_AT_ONCE // k)):
            logits_RV = logits_LV[some_R] if len(some_R) < len(logits_LV) else logits_LV
            found = [_candidates(few_RV, k, temperature) for few_RV in logits_RV.split(_rows_at_once(logits_LV))]
            values_RK, ids_RK, total_R1 = map(torch.cat, zip(*found, strict=True))
            mass_RK = (values_RK - total_R1).exp().cumsum(-1)
            before_RK = torch.cat([torch.zeros_like(mass_RK[:, :1]), mass_RK[:, :-1]], dim=1)
            values_RK = values_RK.masked_fill(before_RK >= top_p, float("-inf"))
            within_R = (mass_RK[:, -1] >= top_p) | (k == vocabulary)
            if within_R.any():
                yield some_R[within_R], values_RK[within_R], ids_RK[within_R]
            wider.append(some_R[~within_R])
        lines_R = torch.cat(wider)
        k = min(8 * k, vocabulary)


def _rows_at_once(logits_LV: Tensor) -> int:
    return max(1, _DRAWN_AT_ONCE // logits_LV.shape[1])


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """Logits by temperature, in memory of their own, float32 or wider; at low ones, the largest of a row is 0."""
    scaled_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32), copy=True)
    if temperature < _COLD:
        scaled_RV.sub_(scaled_RV.amax(-1, keepdim=True))
    return scaled_RV.div_(temperature)


def _candidates(logits_RV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits by temperature, their ids (R, K), and the log of the sum over all of their exp (R, 1)."""
    scaled_RV = _scaled(logits_RV, temperature)
    values_RK, ids_RK = scaled_RV.topk(k, dim=-1)
    most_R1 = values_RK[:, :1]
    return values_RK, ids_RK, most_R1 + scaled_RV.sub_(most_R1).exp_().sum(-1, keepdim=True).log_()
