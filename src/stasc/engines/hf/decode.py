"""Decodes one batch with a transformers model. Samples that have drawn the same tokens so far share one sequence.

Shapes: B samples, S sequences, V vocabulary, K candidate tokens, R sequences or samples of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from stasc.engines import noise
from stasc.engines.engine import Completion, Decoding
from stasc.engines.hf import prefill
from stasc.errors import NonFiniteError
from stasc.models.model import Network
from stasc.records import Advance

_FIRST_CANDIDATES = 128
_CHUNK = 2**21  # logits: drawing takes several times their memory
_COLDEST = torch.finfo(torch.float32).tiny  # lower temperatures are greedy
_COLD = 1e-20  # logits divided by lower temperatures may overflow
_DROP_FROM = 1 / 8  # share of ended sequences from which they are dropped, which costs an operation per layer


class NonFiniteLogits(NonFiniteError):
    """Logits of the next token are not finite. `rows` are the indices of the samples."""

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
    begun: Sequence[tuple[int, ...]],
) -> list[Completion]:
    """Returns the completion of each prompt with its noise key.

    Args:
        begun: the tokens that each sample has drawn before, equally many; they also end its prompt.
    Raises: NonFiniteLogits if the model is broken.
    """
    device = model.device
    logits_SV, sequences, batch = prefill.prefill(model, prompts, decoding.max_new_tokens, prefill_tokens)
    keys_B = torch.tensor(keys, dtype=torch.int64, device=device)
    sampled, first = [list(ids) for ids in begun], len(begun[0])
    active = list(range(len(prompts)))

    for position in range(decoding.max_new_tokens):
        sequence_B = torch.tensor(sequences, device=device)
        logits_SV = mask_unknown(logits_SV, decoding)
        try:
            drawn = draw(logits_SV, sequence_B, keys_B, first + position, decoding.temperature, decoding.top_p).tolist()
        except NonFiniteLogits as error:
            raise NonFiniteLogits([active[index] for index in error.rows]) from None
        for row, id_ in zip(active, drawn, strict=True):
            sampled[row].append(id_)
        left = [index for index, id_ in enumerate(drawn) if id_ not in decoding.stop_ids]
        if decoding.stopped is not None:
            left = [index for index in left if not decoding.stopped(sampled[active[index]])]
        active = [active[index] for index in left]
        if len(active) < len(drawn):
            advance(len(drawn) - len(active))
        if position + 1 == decoding.max_new_tokens or not active:
            break
        pairs = [(sequences[index], drawn[index]) for index in left]
        branches = branch(pairs, len(logits_SV))
        place = {pair: sequence for sequence, pair in enumerate(branches)}
        sequences, keys_B = [place[pair] for pair in pairs], keys_B[torch.tensor(left, device=device)]
        parent_S, ids_S = torch.tensor(branches, device=device).unbind(1)
        if [parent for parent, _ in branches] != list(range(len(logits_SV))):
            batch.select(parent_S)
        logits_SV = batch.forward(model, ids_S).logits[:, -1]
    advance(len(active))
    truncated = set(active)
    return [Completion(tuple(ids), row in truncated) for row, ids in enumerate(sampled)]


def branch(pairs: Sequence[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """Returns the sequences to continue, each as its parent sequence and the token to append.

    Most keep the index of their parent, as moving one copies its KV cache. Sequences that no sample is in any more are
    kept until they are many.

    Args:
        pairs: sequence and drawn token of each sample; samples with equal pairs share a sequence.
        count: the number of sequences so far.
    """
    wanted = list(dict.fromkeys(pairs))
    few_unused = 0 <= count - len(wanted) < _DROP_FROM * count
    found = dict[int, tuple[int, int]]()
    size = count if few_unused else len(wanted)
    for pair in wanted:
        if pair[0] < size:
            found.setdefault(pair[0], pair)
    free = [sequence for sequence in range(size) if sequence not in found]
    moved = [pair for pair in wanted if found.get(pair[0]) != pair]
    found |= zip(free, moved, strict=False)  # `free` has at least as many
    return [found.get(sequence, (sequence, 0)) for sequence in range(size)]


def mask_unknown(logits_SV: Tensor, decoding: Decoding) -> Tensor:
    """Removes tokens that the tokenizer lacks: those at the end are cut off, others get -inf."""
    if decoding.drawable is None:
        return logits_SV
    end, holes = _known(decoding.drawable, logits_SV.shape[1])
    logits_SV = logits_SV[:, :end]
    if not holes:
        return logits_SV
    return logits_SV.index_fill(1, torch.tensor(holes, device=logits_SV.device), float("-inf"))


@lru_cache(maxsize=4)
def _known(ids: frozenset[int], size: int) -> tuple[int, tuple[int, ...]]:
    """Returns one past the largest known id of a model, and the unknown ids below it."""
    known = {id_ for id_ in ids if id_ < size}
    end = max(known) + 1
    return end, tuple(id_ for id_ in range(end) if id_ not in known)


def draw(
    logits_SV: Tensor, sequence_B: Tensor, keys_B: Tensor, position: int, temperature: float, top_p: float
) -> Tensor:
    """Draws the next token of each sample, int64 (B,): Gumbel-max over the nucleus of softmax(logits / temperature).

    The nucleus is the smallest set of most probable tokens whose probability reaches `top_p` (Holtzman et al.,
    arXiv 1904.09751). Temperature 0 draws the most probable token.

    Raises: NonFiniteLogits if logits of a sample include NaN or infinity, or are all minus infinity. Checking the drawn
        value is enough: it is the largest, and NaN counts as larger than any number.
    """
    if temperature < _COLDEST:
        chosen_S = logits_SV.argmax(-1)
        _expect_finite(logits_SV.gather(1, chosen_S.unsqueeze(1)).squeeze(1)[sequence_B])
        return chosen_S[sequence_B]
    chosen_B = torch.empty_like(keys_B)
    value_B = torch.empty(keys_B.shape, dtype=torch.float64, device=keys_B.device)  # logit plus noise of the chosen
    every = torch.arange(len(keys_B), device=keys_B.device)
    if top_p >= 1:
        for rows in every.split(_chunk_rows(logits_SV)):
            noise_RV = noise.gumbel_all(keys_B[rows], position, logits_SV.shape[1])
            noisy_RV = _scaled(logits_SV[sequence_B[rows]], temperature) + noise_RV
            chosen_B[rows] = noisy_RV.argmax(-1)
            value_B[rows] = noisy_RV.gather(1, chosen_B[rows].unsqueeze(1)).squeeze(1)
        _expect_finite(value_B)
        return chosen_B
    for sequences_R, values_RK, ids_RK in nuclei(logits_SV, temperature, top_p):
        rank_S = torch.full_like(logits_SV[:, 0], -1, dtype=torch.int64)  # within the chunk
        rank_S[sequences_R] = torch.arange(len(sequences_R), device=sequences_R.device)
        rank_B = rank_S[sequence_B]
        for rows in every[rank_B >= 0].split(max(1, _CHUNK // ids_RK.shape[1])):
            some_RK = ids_RK[rank_B[rows]]
            noisy_RK = values_RK[rank_B[rows]] + noise.gumbel(keys_B[rows], position, some_RK)
            best_R1 = noisy_RK.argmax(-1, keepdim=True)
            chosen_B[rows] = some_RK.gather(1, best_R1).squeeze(1)
            value_B[rows] = noisy_RK.gather(1, best_R1).squeeze(1)
    _expect_finite(value_B)
    return chosen_B


def _expect_finite(value_B: Tensor) -> None:
    finite_B = value_B.isfinite()
    if not finite_B.all():
        raise NonFiniteLogits((~finite_B).nonzero().flatten().tolist())


def nuclei(logits_SV: Tensor, temperature: float, top_p: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yields the nucleus of every sequence, in chunks of R with nuclei of similar size.

    No sequence is sorted much further than its nucleus reaches.

    Yields: sequences (R,); their logits by temperature and token ids (R, K), most probable first. Logits are -inf where
        a nucleus has fewer than K tokens.
    """
    vocabulary = logits_SV.shape[1]
    sequences_R = torch.arange(len(logits_SV), device=logits_SV.device)
    k = min(_FIRST_CANDIDATES, vocabulary)
    while len(sequences_R):
        wider = []
        for some_R in sequences_R.split(max(1, _CHUNK // k)):
            logits_RV = logits_SV[some_R] if len(some_R) < len(logits_SV) else logits_SV
            found = [_candidates(few_RV, k, temperature) for few_RV in logits_RV.split(_chunk_rows(logits_SV))]
            values_RK, ids_RK, total_R1 = map(torch.cat, zip(*found, strict=True))
            mass_RK = (values_RK - total_R1).exp().cumsum(-1)
            before_RK = torch.cat([torch.zeros_like(mass_RK[:, :1]), mass_RK[:, :-1]], dim=1)
            values_RK = values_RK.masked_fill(before_RK >= top_p, float("-inf"))
            within_R = (mass_RK[:, -1] >= top_p) | (k == vocabulary)
            if within_R.any():
                yield some_R[within_R], values_RK[within_R], ids_RK[within_R]
            wider.append(some_R[~within_R])
        sequences_R = torch.cat(wider)
        k = min(8 * k, vocabulary)


def _chunk_rows(logits_SV: Tensor) -> int:
    return max(1, _CHUNK // logits_SV.shape[1])


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """Returns a copy of logits / temperature, float32 or wider; at low temperatures the largest of a row becomes 0."""
    scaled_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32), copy=True)
    if temperature < _COLD:
        scaled_RV.sub_(scaled_RV.amax(-1, keepdim=True))
    return scaled_RV.div_(temperature)


def _candidates(logits_RV: Tensor, k: int, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the k largest logits by temperature, their ids (R, K), and the log-sum-exp over the vocabulary (R, 1)."""
    scaled_RV = _scaled(logits_RV, temperature)
    values_RK, ids_RK = scaled_RV.topk(k, dim=-1)
    most_R1 = values_RK[:, :1]
    return values_RK, ids_RK, most_R1 + scaled_RV.sub_(most_R1).exp_().sum(-1, keepdim=True).log_()
