"""One batch of answers from a transformers model.

Each distinct prompt is computed once for all its samples, and rows leave as they end.

Shapes: B rows (one per sample), V vocabulary, K candidates, R rows of a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stasc.engine import Completion, Decoding, noise, prefill
from stasc.engine.cache import staying
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.model import Network

_FIRST_CANDIDATES = 128
_DRAWN_AT_ONCE = 2**21  # logits: drawing takes several times their memory
_LEAVE_TOGETHER = 1 / 8  # of the rows: to be rid of some takes an operation or more for each layer


def sample_batch(
    model: Network,
    prompts: Sequence[tuple[int, ...]],
    keys: Sequence[int],
    decoding: Decoding,
    advance: Advance,
    prefill_tokens: int,
) -> list[Completion]:
    """One completion per row, for its prompt and noise key."""
    device = model.device
    logits_BV, batch = prefill.prefill(model, prompts, decoding.max_new_tokens, prefill_tokens)
    keys_B = torch.tensor(keys, dtype=torch.int64, device=device)
    stop = torch.tensor(sorted(decoding.stop_ids), dtype=torch.int64, device=device)
    sampled: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    live = list(range(len(prompts)))  # the row that each line of the tensors belongs to

    for position in range(decoding.max_new_tokens):
        ids_B = draw(logits_BV, keys_B, position, decoding.temperature, decoding.top_p)
        stopped_B = torch.isin(ids_B, stop)
        before = sum(ended)
        for line, (id_, stopped) in enumerate(zip(ids_B.tolist(), stopped_B.tolist(), strict=True)):
            if not ended[live[line]]:
                sampled[live[line]].append(id_)
                ended[live[line]] = stopped
        if sum(ended) > before:
            advance(sum(ended) - before)
        if position + 1 == decoding.max_new_tokens or all(ended):
            break
        if sum(ended[row] for row in live) >= _LEAVE_TOGETHER * len(live):
            going = staying(torch.tensor([not ended[row] for row in live], device=device))
            live = [live[line] for line in going.tolist()]
            ids_B, keys_B = ids_B[going], keys_B[going]
            batch.select(going)
        logits_BV = batch.forward(model, ids_B).logits[:, -1]
    advance(len(ended) - sum(ended))
    return [Completion(tuple(ids), not end) for ids, end in zip(sampled, ended, strict=True)]


def draw(logits_BV: Tensor, keys_B: Tensor, position: int, temperature: float, top_p: float) -> Tensor:
    """The next token of each row, int64 (B,): Gumbel-max over the nucleus of softmax(logits / temperature).

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p` (Holtzman et al.,
    arXiv 1904.09751). Temperature 0 is the most probable token.
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    chosen_B = torch.empty_like(keys_B)
    if top_p >= 1:
        for rows in torch.arange(len(keys_B), device=keys_B.device).split(_rows_at_once(logits_BV)):
            noise_RV = noise.gumbel_all(keys_B[rows], position, logits_BV.shape[1])
            chosen_B[rows] = (_scaled(logits_BV[rows], temperature) + noise_RV).argmax(-1)
        return chosen_B
    for rows_R, values_RK, ids_RK in nuclei(logits_BV, temperature, top_p):
        winner_R1 = (values_RK + noise.gumbel(keys_B[rows_R], position, ids_RK)).argmax(-1, keepdim=True)
        chosen_B[rows_R] = ids_RK.gather(1, winner_R1).squeeze(1)
    return chosen_B


def nuclei(logits_BV: Tensor, temperature: float, top_p: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the nucleus of every row, by groups of R rows with nuclei of like size.

    Returns: the rows (R,); their nuclei as logits by temperature, and token ids (R, K), most probable first, the logits
        -inf where a row's nucleus has fewer than K tokens. No row is sorted much further than its nucleus reaches.
    """
    vocabulary = logits_BV.shape[1]
    rows_R = torch.arange(len(logits_BV), device=logits_BV.device)
    k = min(_FIRST_CANDIDATES, vocabulary)
    while len(rows_R):
        wider = []
        for some_R in rows_R.split(max(1, _DRAWN_AT_ONCE // k)):
            logits_RV = logits_BV[some_R] if len(some_R) < len(logits_BV) else logits_BV
            found = [_candidates(few_RV, k, temperature) for few_RV in logits_RV.split(_rows_at_once(logits_BV))]
            values_RK, ids_RK, total_R1 = map(torch.cat, zip(*found, strict=True))
            mass_RK = (values_RK - total_R1).exp().cumsum(-1)
            before_RK = torch.cat([torch.zeros_like(mass_RK[:, :1]), mass_RK[:, :-1]], dim=1)
            values_RK = values_RK.masked_fill(before_RK >= top_p, float("-inf"))
            within_R = (mass_RK[:, -1] >= top_p) | (k == vocabulary)
            if within_R.any():
                yield some_R[within_R], values_RK[within_R], ids_RK[within_R]
            wider.append(some_R[~within_R])
        rows_R = torch.cat(wider)
        k = min(8 * k, vocabulary)


def _rows_at_once(logits_BV: Tensor) -> int:
    return max(1, _DRAWN_AT_ONCE // logits_BV.shape[1])


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """Logits by temperature, in memory of their own, float32 or wider."""
    return logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32), copy=True).div_(temperature)


def _candidates(logits_RV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits by temperature, their ids (R, K), and the log of the sum over all of their exp (R, 1)."""
    scaled_RV = _scaled(logits_RV, temperature)
    values_RK, ids_RK = scaled_RV.topk(k, dim=-1)
    most_R1 = values_RK[:, :1]
    return values_RK, ids_RK, most_R1 + scaled_RV.sub_(most_R1).exp_().sum(-1, keepdim=True).log_()
