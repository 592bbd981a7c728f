"""Drawing tokens, against independent rules: exact distributions, and a nucleus by sorting."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sampled import sampled
from scipy import stats
from tiny_lm import decoding, next_logits, tokens
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    TopPLogitsWarper,
)

from stasc.engines import noise
from stasc.engines.engine import Completion, Decoding, Request
from stasc.engines.hf import decode
from stasc.engines.hf.engine import HF

DRAWS = 20_000


def draw(logits_BV: Tensor, keys_B: Tensor, *how: Any) -> Tensor:
    """Draws for samples that each have a sequence of their own."""
    return decode.draw(logits_BV, torch.arange(len(keys_B), device=keys_B.device), keys_B, *how)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "top_p"), [(torch.float32, 0.9), (torch.float32, 1.0), (torch.bfloat16, 1.0)])
def test_drawing_on_cuda_is_drawing_on_the_cpu(dtype: torch.dtype, top_p: float) -> None:
    logits = (torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    keys = torch.arange(64)
    expected = draw(logits, keys, 2, 1.0, top_p)
    assert torch.equal(draw(logits.cuda(), keys.cuda(), 2, 1.0, top_p).cpu(), expected)


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((logit - top) / temperature) for logit in logits]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def exact(logits: Sequence[float], temperature: float, top_p: float) -> dict[int, float]:
    """The probability of each token of the nucleus."""
    probabilities = softmax(logits, temperature)
    nucleus: list[int] = []
    mass = 0.0
    for token in sorted(range(len(logits)), key=lambda token: -probabilities[token]):
        if mass >= top_p and top_p < 1:
            break
        nucleus.append(token)
        mass += probabilities[token]
    return {token: probabilities[token] / mass for token in nucleus}


def assert_drawn_from(expected: dict[int, float], drawn: Sequence[int]) -> None:
    """Chi-square: tokens expected fewer than 5 times count together."""
    counts = Counter(drawn)
    assert set(counts) <= set(expected)
    common = [token for token, p in expected.items() if p * len(drawn) >= 5]
    observed = [counts[token] for token in common]
    wanted = [expected[token] * len(drawn) for token in common]
    if len(drawn) - sum(wanted) >= 5:
        observed.append(len(drawn) - sum(observed))
        wanted.append(len(drawn) - sum(wanted))
    wanted = [count * sum(observed) / sum(wanted) for count in wanted]
    assert len(wanted) > 1
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize(
    ("size", "temperature", "top_p"),
    [(50, temperature, top_p) for temperature in (0.7, 1.0, 2.0) for top_p in (0.5, 0.9, 1.0)] + [(200, 2.0, 0.95)],
)
def test_draws_follow_the_softmax_of_the_nucleus(size: int, temperature: float, top_p: float) -> None:
    logits = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    drawn = decode.draw(
        logits.unsqueeze(0), torch.zeros(DRAWS, dtype=torch.int64), torch.arange(DRAWS), 0, temperature, top_p
    )
    assert_drawn_from(exact(logits.tolist(), temperature, top_p), drawn.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draws_from_16_and_32_bit_logits_follow_the_softmax_of_those_logits(dtype: torch.dtype) -> None:
    """Around 100, steps of bfloat16 are 1/2, and 1 once divided by 0.7 in it: that would distort probabilities."""
    logits = (100 + torch.randn(50, generator=torch.Generator().manual_seed(1))).to(dtype)
    drawn = decode.draw(logits.unsqueeze(0), torch.zeros(DRAWS, dtype=torch.int64), torch.arange(DRAWS), 0, 0.7, 1.0)
    assert_drawn_from(exact(logits.tolist(), 0.7, 1.0), drawn.tolist())


def sample(model: LlamaForCausalLM, prompt: tuple[int, ...], how: Decoding) -> list[Completion]:
    keys = tuple(noise.noise_key("draw", index) for index in range(DRAWS))
    (completions,) = sampled(HF(5000), model, [Request(prompt, keys)], how)
    return completions


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_first_tokens_follow_the_distribution_of_the_model(model: LlamaForCausalLM, top_p: float) -> None:
    prompt = tokens(9, 4)
    drawn = [completion.ids[0] for completion in sample(model, prompt, decoding(0.7, top_p, max_new_tokens=1))]
    assert_drawn_from(exact(next_logits(model, prompt).tolist(), 0.7, top_p), drawn)


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_second_tokens_follow_the_distribution_of_the_model_behind_the_first(
    model: LlamaForCausalLM, top_p: float
) -> None:
    prompt = tokens(9, 4)
    drawn = [completion.ids for completion in sample(model, prompt, decoding(0.7, top_p, max_new_tokens=2))]
    ((first, times),) = Counter(ids[0] for ids in drawn).most_common(1)
    assert times > 1000
    behind = exact(next_logits(model, (*prompt, first)).tolist(), 0.7, top_p)
    assert_drawn_from(behind, [ids[1] for ids in drawn if ids[0] == first])


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_each_row_draws_by_gumbel_max_with_the_noise_of_its_own_key(top_p: float) -> None:
    """Large and small nuclei alternate, so that the sequences of a chunk are not adjacent."""
    scale = torch.tensor([[0.3], [4.0], [0.3]]).repeat(6, 1)
    logits = (torch.randn(18, 1000, generator=torch.Generator().manual_seed(5)) * scale).double()
    keys = torch.tensor([noise.noise_key("row", row) for row in range(18)])
    gumbel = noise.gumbel_all(keys, 3, 1000)
    for row, drawn in enumerate(draw(logits, keys, 3, 0.7, top_p).tolist()):
        nucleus = exact(logits[row].tolist(), 0.7, top_p)
        assert drawn == max(nucleus, key=lambda token, row=row: logits[row, token] / 0.7 + gumbel[row, token])


def test_a_small_nucleus_is_the_most_probable_token() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(2))
    assert torch.equal(draw(logits, torch.arange(40), 0, 1.0, 1e-9), logits.argmax(-1))


def nuclei(logits_BV: Tensor, top_p: float) -> list[list[int]]:
    """The ids of each row's nucleus, in order."""
    found: dict[int, list[int]] = {}
    for rows_R, values_RK, ids_RK in decode.nuclei(logits_BV, 1.0, top_p):
        for row, values, ids in zip(rows_R.tolist(), values_RK, ids_RK, strict=True):
            assert row not in found
            found[row] = ids[values > -math.inf].tolist()
            assert torch.equal(values[: len(found[row])], logits_BV[row, found[row]])
    return [found[row] for row in range(len(logits_BV))]


def assert_nucleus(row: Sequence[float], ids: list[int], top_p: float, tolerance: float) -> None:
    """`ids` are the first of all tokens by probability, ties in any order, and as many as it takes to reach top_p.

    Sums may be off by `tolerance`, so one token more or less is right where the sum is as near to top_p as that.
    """
    probabilities = softmax(row, 1.0)
    assert [row[token] for token in ids] == sorted(row, reverse=True)[: len(ids)]
    assert len(set(ids)) == len(ids) > 0
    assert math.fsum(probabilities[token] for token in ids[:-1]) < top_p + tolerance
    assert len(ids) == len(row) or math.fsum(probabilities[token] for token in ids) >= top_p - tolerance


levels = st.sampled_from([-4.0, -1.0, 0.0, 0.5, 1.0, 3.0])  # few values, many ties

logit_rows = st.one_of(
    st.lists(st.floats(-30, 30), min_size=1, max_size=200),
    st.lists(levels, min_size=1, max_size=400),
    st.builds(lambda size, logit: [logit] * size, st.integers(1, 1500), levels),
    st.builds(
        lambda size, seed, scale: [scale * random.Random(seed).gauss(0, 1) for _ in range(size)],
        st.integers(129, 1500),
        st.integers(0, 100),
        st.sampled_from([0.01, 0.3, 2.0, 6.0]),
    ),
)

shares = st.one_of(st.floats(1e-6, 1, exclude_max=True), st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.999, 1 - 2**-52]))


@settings(deadline=None, max_examples=200)
@given(row=logit_rows, top_p=shares)
@example(row=[0.0], top_p=0.5)
@example(row=[0.0] * 128, top_p=0.999)
@example(row=[0.0] * 129, top_p=0.5)
@example(row=[0.0] * 1025, top_p=0.9)
@example(row=[1.0, 1.0, 0.0, 1.0], top_p=0.5)
def test_the_nucleus_is_what_sorting_all_tokens_gives(row: list[float], top_p: float) -> None:
    logits = torch.tensor([row], dtype=torch.float64)
    (ids,) = nuclei(logits, top_p)
    assert_nucleus(row, ids, top_p, tolerance=1e-9)


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_the_nucleus_of_32_bit_logits_is_what_sorting_gives(scale: float, top_p: float) -> None:
    logits = torch.randn(5, 3001, generator=torch.Generator().manual_seed(3)) * scale
    for row, ids in zip(logits, nuclei(logits, top_p), strict=True):
        assert_nucleus(row.tolist(), ids, top_p, tolerance=1e-5)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [3, 128, 129, 1000, 1025])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_the_nucleus_is_that_of_transformers(scale: float, size: int, top_p: float) -> None:
    logits = torch.randn(8, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size)) * scale
    theirs = TopPLogitsWarper(top_p)(torch.zeros(8, 1, dtype=torch.int64), logits) > -math.inf
    assert [set(ids) for ids in nuclei(logits, top_p)] == [set(row.nonzero().flatten().tolist()) for row in theirs]


@pytest.mark.parametrize("top_p", [0.1, 0.2, 0.5, 0.9])
def test_the_nucleus_of_a_row_does_not_depend_on_the_rows_beside_it_though_tokens_tie(top_p: float) -> None:
    """16-bit logits have many ties, and a flat row beside them makes the sampler sort further."""
    logits = (torch.randn(20, 1000, generator=torch.Generator().manual_seed(4)) * 2).bfloat16().float()
    flat = torch.zeros(1, 1000)
    together = nuclei(torch.cat([logits, flat]), top_p)
    alone = [nuclei(row.unsqueeze(0), top_p)[0] for row in logits]
    assert together[:-1] == alone
    keys = torch.arange(21)
    drawn = draw(torch.cat([logits, flat]), keys, 0, 1.0, top_p)
    assert drawn[:-1].tolist() == [
        draw(row.unsqueeze(0), key.unsqueeze(0), 0, 1.0, top_p).item() for row, key in zip(logits, keys, strict=False)
    ]


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_the_chunk_size_changes_no_draw(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, keys = 3 * torch.randn(7, 1000), torch.arange(7)
    together = draw(logits, keys, 2, 0.8, top_p)
    monkeypatch.setattr(decode, "_CHUNK", 2000)
    assert torch.equal(draw(logits, keys, 2, 0.8, top_p), together)
    alone = [draw(row[None], key[None], 2, 0.8, top_p) for row, key in zip(logits, keys, strict=True)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_samples_of_one_sequence_draw_as_in_sequences_of_their_own(temperature: float, top_p: float) -> None:
    """Peaked and flat sequences, which are drawn in different chunks; one sequence has no sample."""
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[8.0], [0.1], [2.0], [1]])
    line_B, keys = torch.tensor([1, 0, 2, 1, 1, 0, 2, 1] * 9), torch.arange(72)
    drawn = decode.draw(logits, line_B, keys, 3, temperature, top_p)
    assert torch.equal(drawn, draw(logits[line_B], keys, 3, temperature, top_p))


def test_wide_nuclei_are_found_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5000)
    whole = nuclei(logits, 0.99)
    monkeypatch.setattr(decode, "_CHUNK", 10_000)
    assert all(ids_RK.numel() <= 10_000 for _, _, ids_RK in decode.nuclei(logits, 1.0, 0.99))
    assert nuclei(logits, 0.99) == whole


def test_a_flat_sequence_does_not_widen_the_sort_of_a_peaked_one() -> None:
    rows = torch.zeros(3, 5000)
    rows[0, 7] = rows[2, 9] = 20.0
    groups = [(rows_R.tolist(), ids_RK.shape[1]) for rows_R, _, ids_RK in decode.nuclei(rows, 1.0, 0.5)]
    (peaked, narrow), (flat, wide) = groups
    assert (peaked, flat) == ([0, 2], [1])
    assert narrow < 2500 <= wide


@given(
    had=st.integers(1, 40),
    drawn=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 3)), min_size=1, max_size=60),
)
def test_branches_continue_each_pair_once_and_mostly_in_place(had: int, drawn: list[tuple[int, int]]) -> None:
    pairs = [(line % had, id_) for line, id_ in drawn]
    lines = decode.branch(pairs, had)
    places = {pair: [place for place, line in enumerate(lines) if line == pair] for pair in set(pairs)}
    assert all(len(found) == 1 for found in places.values())
    left = [(place, line) for place, line in enumerate(lines) if line not in places]
    assert all(line[0] == place for place, line in left), "what nobody is in stays where it is"
    assert not left or len(left) < had / 8
    for parent in {parent for parent, _ in pairs if parent < len(lines)}:
        assert lines[parent][0] == parent, "one of those that continue a line takes its place"
