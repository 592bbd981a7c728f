"""The sampler against independent rules: transformers' own decoding, exact distributions, and a nucleus by sorting.

The model is tiny and random, in float64 where something is claimed to be exact.
"""

from __future__ import annotations

import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from sampled import loaded, sampled
from scipy import stats
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    TopPLogitsWarper,
)

from stasc.engines import noise
from stasc.engines.engine import Completion, Decoding, Request
from stasc.engines.hf import cache, decode, memory, prefill, shared
from stasc.engines.hf.cache import PreallocatedCache
from stasc.engines.hf.engine import HF
from stasc.engines.hf.memory import Limit
from stasc.machine import cgroup, processor
from stasc.models import sources
from stasc.prefix_tree import probe
from stasc.tracking import fallback

VOCABULARY = 260
CONTEXT = 2048
DRAWS = 20_000


def load(folder: str, dtype: torch.dtype) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: str) -> LlamaForCausalLM:
    return load(folder, torch.float64)


@pytest.fixture
def shapes(model: LlamaForCausalLM) -> Iterator[list[tuple[int, ...]]]:
    """The shape of the token ids of each forward pass, but for those that try what the model can do."""
    with torch.inference_mode():
        prefill.shares(model)
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    yield seen
    hook.remove()


def tokens(count: int, seed: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(VOCABULARY), k=count))


def prompts(lengths: Sequence[int], shared: int = 0) -> list[tuple[int, ...]]:
    """One prompt per length, of random tokens behind `shared` tokens that they have in common."""
    return [tokens(shared, 0) + tokens(length, seed) for seed, length in enumerate(lengths, start=1)]


def decoding(
    temperature: float = 1.0, top_p: float = 1.0, max_new_tokens: int = 8, stop: Sequence[int] = ()
) -> Decoding:
    return Decoding(temperature, top_p, max_new_tokens, frozenset(stop))


def next_logits(model: LlamaForCausalLM, prompt: Sequence[int]) -> Tensor:
    """What follows a prompt, by one plain forward pass over it alone."""
    with torch.inference_mode():
        return model(torch.tensor([prompt], device=model.device)).logits[0, -1]


def draw(logits_BV: Tensor, keys_B: Tensor, *how: Any) -> Tensor:
    """What rows draw that are each in a line of their own."""
    return decode.draw(logits_BV, torch.arange(len(keys_B), device=keys_B.device), keys_B, *how)


MIXED = [*prompts([1, 2, 3, 5, 8, 8, 13, 30], shared=6), tokens(6, 0), (*tokens(6, 0), 7, 7)]
STOPS = tuple(range(0, VOCABULARY, 9))  # 29 of 260: some answers end early, some at once, some never


# Greedy decoding


def generated(model: LlamaForCausalLM, prompt: Sequence[int], stop: Sequence[int], limit: int) -> tuple[int, ...]:
    """What transformers' own generate answers to this prompt alone."""
    ids = torch.tensor([prompt], device=model.device)
    ended = {"eos_token_id": list(stop)} if stop else {"eos_token_id": -1}
    answer = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, pad_token_id=0, **ended
    )
    return tuple(answer[0, len(prompt) :].tolist())


@pytest.mark.parametrize("batch_size", [1, 3, 4, 64])
@pytest.mark.parametrize("stop", [STOPS, ()], ids=["stops", "no stops"])
def test_greedy_is_what_generate_gives_prompt_by_prompt(
    model: LlamaForCausalLM, batch_size: int, stop: Sequence[int]
) -> None:
    requests = [Request(prompt, (index,)) for index, prompt in enumerate(MIXED)]
    found = sampled(HF(batch_size), model, requests, decoding(0, max_new_tokens=12, stop=stop))
    expected = [generated(model, prompt, stop, 12) for prompt in MIXED]
    assert [completion.ids for (completion,) in found] == expected
    lengths = {len(ids) for ids in expected}
    assert len(lengths) > 2 if stop else lengths == {12}  # else this compares less than it says


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_stop_string_ends_an_answer_and_leaves_the_others_as_they_are(
    model: LlamaForCausalLM, batch_size: int
) -> None:
    """The string is two tokens that some answers have, one after the other."""
    requests = [Request(prompt, (index, 100 + index)) for index, prompt in enumerate(MIXED)]
    how = decoding(max_new_tokens=12, stop=STOPS)
    free = sampled(HF(batch_size), model, requests, how)
    pair = next(answer.ids[2:4] for answers in free for answer in answers if len(answer.ids) > 5)

    def ends(ids: Sequence[int]) -> bool:
        return any(tuple(ids[at : at + 2]) == pair for at in range(len(ids)))

    stopped = sampled(HF(batch_size), model, requests, replace(how, stopped=ends))

    assert sum(map(ends, (answer.ids for answers in free for answer in answers))) >= 1
    for before, after in zip(chain(*free), chain(*stopped), strict=True):
        if not ends(before.ids):
            assert after == before
            continue
        end = next(end for end in range(len(before.ids) + 1) if ends(before.ids[:end]))
        assert after == Completion(before.ids[:end], truncated=False)


def test_greedy_heeds_neither_top_p_nor_noise(model: LlamaForCausalLM) -> None:
    answers = [
        sampled(HF(8), model, [Request(MIXED[3], (key, key + 1))], decoding(0, top_p))[0]
        for key in (0, 10)
        for top_p in (0.1, 1.0)
    ]
    assert len({completion for answer in answers for completion in answer}) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_greedy_on_cuda_in_float32_is_what_generate_gives(folder: str, batch_size: int) -> None:
    model = load(folder, torch.float32).cuda()
    requests = [Request(prompt, (index,)) for index, prompt in enumerate(MIXED)]
    found = sampled(HF(batch_size), model, requests, decoding(0, max_new_tokens=12, stop=STOPS))
    assert [completion.ids for (completion,) in found] == [generated(model, prompt, STOPS, 12) for prompt in MIXED]


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "top_p"), [(torch.float32, 0.9), (torch.float32, 1.0), (torch.bfloat16, 1.0)])
def test_drawing_on_cuda_is_drawing_on_the_cpu(dtype: torch.dtype, top_p: float) -> None:
    logits = (torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    keys = torch.arange(64)
    expected = draw(logits, keys, 2, 1.0, top_p)
    assert torch.equal(draw(logits.cuda(), keys.cuda(), 2, 1.0, top_p).cpu(), expected)


# What all rows share is computed once, and changes nothing


@pytest.mark.parametrize(
    "some",
    [
        prompts([1, 2, 3, 5, 8, 30], shared=6),
        prompts([4, 9, 2, 7]),
        [tokens(12, 1)] * 5,
        [tokens(1, 1)],
        [tokens(1, 1), (*tokens(1, 1), 5), (*tokens(1, 1), 5, 6, 7)],
        [tokens(9, 1), tokens(9, 1)[:4], (*tokens(9, 1)[:8], 0), tokens(9, 1)],
        [(0,) * 3, (0,) * 9],
    ],
    ids=["common prefix", "no common prefix", "one prompt", "one token", "one token shared", "prefixes", "zeros"],
)
def test_the_logits_of_a_prefill_are_those_of_a_plain_forward_pass(
    model: LlamaForCausalLM, some: list[tuple[int, ...]]
) -> None:
    with torch.inference_mode():
        logits_SV, lines, _ = prefill.prefill(model, some, 0, 50)
    assert len(logits_SV) == len(set(some))
    for row, prompt in zip(logits_SV[lines], some, strict=True):
        torch.testing.assert_close(row, next_logits(model, prompt), rtol=0, atol=1e-10)


def test_later_logits_are_those_of_a_plain_forward_pass_though_rows_have_left(model: LlamaForCausalLM) -> None:
    """Each greedy token of every row is the most probable one behind its prompt and answer so far."""
    found = sampled(
        HF(64), model, [Request(prompt, (0,)) for prompt in MIXED], decoding(0, max_new_tokens=12, stop=STOPS)
    )
    for prompt, (completion,) in zip(MIXED, found, strict=True):
        for position, id_ in enumerate(completion.ids):
            assert id_ == next_logits(model, prompt + completion.ids[:position]).argmax()


def test_the_common_prefix_is_computed_once_and_each_distinct_prompt_once(
    model: LlamaForCausalLM, shapes: list[tuple[int, ...]]
) -> None:
    short, long = (*tokens(10, 0), 1, 2), (*tokens(10, 0), 3, 4, 5)
    sampled(
        HF(64),
        model,
        [Request(short, (0, 1, 2)), Request(long, (3,)), Request(short, (4,))],
        decoding(max_new_tokens=2),
    )
    assert shapes == [(1, 10), (1, 5), (5, 1)]


def test_a_prompt_asked_twice_is_computed_once_though_another_stands_between(
    model: LlamaForCausalLM, shapes: list[tuple[int, ...]]
) -> None:
    one, other = tokens(5, 1), tokens(5, 2)
    sampled(HF(2), model, [Request(one, (0,)), Request(other, (1,)), Request(one, (2,))], decoding(max_new_tokens=1))
    assert shapes == [(1, 4), (1, 1)] * 2


def test_rows_leave_as_they_end(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
    found = sampled(
        HF(64), model, [Request(prompt, (0,)) for prompt in MIXED], decoding(0, max_new_tokens=12, stop=STOPS)
    )
    lengths = [len(completion.ids) for (completion,) in found]
    expected, rows = [], len(lengths)
    for position in range(1, max(lengths)):
        going = sum(length > position for length in lengths)
        rows = going if rows - going >= rows / 8 else rows
        expected.append(rows)
    assert [rows for rows, width in shapes[2:]] == expected
    assert len(set(expected)) > 3 and expected != sorted(lengths), "some leave, and not each at once"


def test_the_network_is_put_into_evaluation_mode(folder: str) -> None:
    network = load(folder, torch.float32).train()
    sampled(HF(4), network, [Request((1, 2), (0,))], decoding(max_new_tokens=1))
    assert not network.training


# The distribution that is drawn from


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
    """Large and small nuclei take turns, so that rows which are looked at together do not stand together."""
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


# The nucleus


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
    """16-bit logits have many ties, and a flat row beside them makes the sampler look further."""
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
def test_how_many_rows_are_drawn_at_once_changes_no_draw(top_p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits, keys = 3 * torch.randn(7, 1000), torch.arange(7)
    together = draw(logits, keys, 2, 0.8, top_p)
    monkeypatch.setattr(decode, "_CHUNK", 2000)
    assert torch.equal(draw(logits, keys, 2, 0.8, top_p), together)
    alone = [draw(row[None], key[None], 2, 0.8, top_p) for row, key in zip(logits, keys, strict=True)]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_rows_of_a_line_draw_what_they_do_in_lines_of_their_own(temperature: float, top_p: float) -> None:
    """Peaked and flat lines, so that they are looked at in groups; one has no rows."""
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[8.0], [0.1], [2.0], [1]])
    line_B, keys = torch.tensor([1, 0, 2, 1, 1, 0, 2, 1] * 9), torch.arange(72)
    drawn = decode.draw(logits, line_B, keys, 3, temperature, top_p)
    assert torch.equal(drawn, draw(logits[line_B], keys, 3, temperature, top_p))


def test_wide_nuclei_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 5000)
    whole = nuclei(logits, 0.99)
    monkeypatch.setattr(decode, "_CHUNK", 10_000)
    assert all(ids_RK.numel() <= 10_000 for _, _, ids_RK in decode.nuclei(logits, 1.0, 0.99))
    assert nuclei(logits, 0.99) == whole


def test_a_peaked_row_is_not_sorted_further_because_of_a_flat_one_beside_it() -> None:
    rows = torch.zeros(3, 5000)
    rows[0, 7] = rows[2, 9] = 20.0
    groups = [(rows_R.tolist(), ids_RK.shape[1]) for rows_R, _, ids_RK in decode.nuclei(rows, 1.0, 0.5)]
    (peaked, narrow), (flat, wide) = groups
    assert (peaked, flat) == ([0, 2], [1])
    assert narrow < 2500 <= wide


# A sample belongs to its question, not to its batch


@pytest.fixture(scope="module")
def questions() -> list[Request]:
    lengths = [1, 2, 2, 3, 5, 8, 8, 13, 21, 30, 40, 4]
    return [
        Request(prompt, tuple(noise.noise_key("question", index, sample) for sample in range(1 + index % 3)))
        for index, prompt in enumerate(prompts(lengths, shared=5))
    ]


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_a_question_gets_the_same_sample_in_any_batch_and_order(
    model: LlamaForCausalLM, questions: list[Request], top_p: float
) -> None:
    how = decoding(1.0, top_p, max_new_tokens=10, stop=STOPS)
    expected = dict(zip(questions, sampled(HF(1), model, questions, how), strict=True))
    assert len({len(completion.ids) for answers in expected.values() for completion in answers}) > 3
    for seed, batch_size in enumerate((3, 8, 64)):
        shuffled = random.Random(seed).sample(questions, k=len(questions))
        assert dict(zip(shuffled, sampled(HF(batch_size), model, shuffled, how), strict=True)) == expected


def test_a_question_gets_the_same_sample_alone(model: LlamaForCausalLM, questions: list[Request]) -> None:
    how = decoding(1.0, 0.9, stop=STOPS)
    together = sampled(HF(64), model, questions, how)
    assert [sampled(HF(64), model, [question], how)[0] for question in questions] == together


@pytest.mark.parametrize(("rows", "sizes"), [(0, []), (7, [7]), (10, [10]), (11, [6, 5]), (25, [9, 9, 7])])
def test_batches_are_of_like_size(rows: int, sizes: list[int]) -> None:
    requests = [Request((1, 2), (0,))] * rows
    assert [len(batch) for batch in HF(10).batches(requests, None)] == sizes
    assert [len(batch) for batch in HF(99).batches(requests, 10)] == sizes


def test_answers_come_in_the_order_of_requests_and_keys(model: LlamaForCausalLM) -> None:
    long, short = tokens(20, 1), tokens(3, 2)
    how = decoding(max_new_tokens=6)
    first, second = sampled(HF(2), model, [Request(long, (5, 6, 7)), Request(short, (8,))], how)
    assert (len(first), len(second)) == (3, 1)
    assert [first[2], second[0]] == [
        sampled(HF(1), model, [Request(long, (7,))], how)[0][0],
        sampled(HF(1), model, [Request(short, (8,))], how)[0][0],
    ]


def test_a_prompt_asked_twice_is_answered_alike_for_the_same_key_and_otherwise_not(model: LlamaForCausalLM) -> None:
    prompt = tokens(7, 1)
    (one, other), (again, third) = sampled(
        HF(64), model, [Request(prompt, (1, 2)), Request(prompt, (1, 3))], decoding()
    )
    assert one == again
    assert len({one, other, third}) == 3


def test_the_noise_of_a_token_is_that_of_its_position_in_the_answer(model: LlamaForCausalLM) -> None:
    """Gumbel-max, position by position, with plain forward passes: whatever the length of the prompt."""
    for prompt in (tokens(1, 3), tokens(25, 3)):
        ((completion,),) = sampled(HF(8), model, [Request(prompt, (42,))], decoding(0.7, max_new_tokens=6))
        for position, id_ in enumerate(completion.ids):
            gumbel = noise.gumbel_all(torch.tensor([42]), position, VOCABULARY)[0]
            assert id_ == (next_logits(model, prompt + completion.ids[:position]) / 0.7 + gumbel).argmax()


# Rows that have drawn the same tokens are computed once


@given(
    had=st.integers(1, 40),
    drawn=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 3)), min_size=1, max_size=60),
)
def test_lines_continue_each_pair_once_and_mostly_in_its_place(had: int, drawn: list[tuple[int, int]]) -> None:
    pairs = [(line % had, id_) for line, id_ in drawn]
    lines = decode.branch(pairs, had)
    places = {pair: [place for place, line in enumerate(lines) if line == pair] for pair in set(pairs)}
    assert all(len(found) == 1 for found in places.values())
    left = [(place, line) for place, line in enumerate(lines) if line not in places]
    assert all(line[0] == place for place, line in left), "what nobody is in stays where it is"
    assert not left or len(left) < had / 8
    for parent in {parent for parent, _ in pairs if parent < len(lines)}:
        assert lines[parent][0] == parent, "one of those that continue a line takes its place"


@pytest.mark.parametrize("kind", ["shared", "plain"])
def test_rows_that_go_on_alike_are_computed_once_and_answer_as_they_do_alone(
    kind: str, model: LlamaForCausalLM, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a cold model often draw the same, though not for ever; some prompts have few rows, some many."""
    how = decoding(0.15, 0.9, max_new_tokens=12, stop=STOPS)
    requests = [
        Request(prompt, tuple(noise.noise_key("row", seed, sample) for sample in range(1 + 5 * (seed % 4))))
        for seed, prompt in enumerate(crowded(3)[:12])
    ]
    alone = [
        [sampled(HF(1), model, [Request(request.prompt, (key,))], how)[0][0] for key in request.keys]
        for request in requests
    ]
    if kind == "plain":
        monkeypatch.setattr(prefill, "_mask", lambda model: None)
    shapes.clear()
    assert sampled(HF(1000), model, requests, how) == alone
    steps = [rows for rows, tokens in shapes if tokens == 1][-11:]
    answers = [(request.prompt, answer.ids) for request, some in zip(requests, alone, strict=True) for answer in some]
    going = [[(prompt, ids[:step]) for prompt, ids in answers if len(ids) > step] for step in range(1, 12)]
    assert len(steps) == len([rows for rows in going if rows])
    for computed, rows in zip(steps, going, strict=False):
        assert len(set(rows)) <= computed <= len(set(rows)) / (7 / 8) + 1
    assert sum(steps) < 0.8 * sum(map(len, going)), "that is less"
    assert any(computed > len(set(rows)) for computed, rows in zip(steps, going, strict=False)), "some stay a while"


# How answers end


def greedy(model: LlamaForCausalLM, limit: int, stop: Sequence[int]) -> Completion:
    ((completion,),) = sampled(
        HF(4), model, [Request(tokens(9, 4), (0,))], decoding(0, max_new_tokens=limit, stop=stop)
    )
    return completion


def test_a_stop_token_ends_an_answer_and_belongs_to_it(model: LlamaForCausalLM) -> None:
    free = greedy(model, 10, ())
    stop = free.ids[4]
    ends = free.ids.index(stop) + 1
    assert greedy(model, 10, (stop,)) == Completion(free.ids[:ends], truncated=False)


def test_the_token_limit_truncates_an_answer(model: LlamaForCausalLM) -> None:
    free = greedy(model, 10, ())
    assert free.truncated
    assert len(free.ids) == 10
    assert greedy(model, 4, ()) == Completion(free.ids[:4], truncated=True)


def test_a_stop_token_at_the_limit_is_no_truncation(model: LlamaForCausalLM) -> None:
    free = greedy(model, 10, ())
    last = next(position for position in range(9, 0, -1) if free.ids[position] not in free.ids[:position])
    assert greedy(model, last + 1, (free.ids[last],)) == Completion(free.ids[: last + 1], truncated=False)


@pytest.mark.parametrize("stops", [True, False])
def test_one_token_is_the_whole_answer_where_one_is_allowed(
    model: LlamaForCausalLM, stops: bool, shapes: list[tuple[int, ...]]
) -> None:
    first = greedy(model, 10, ()).ids[0]
    shapes.clear()
    assert greedy(model, 1, (first,) if stops else ()) == Completion((first,), truncated=not stops)
    assert len(shapes) == 2  # the prefix and the last token of the prompt: nothing is computed that is not sampled


def test_all_answers_may_end_at_the_first_token(model: LlamaForCausalLM) -> None:
    requests = [Request(prompt, (index, index + 100)) for index, prompt in enumerate(MIXED)]
    for answers in sampled(HF(64), model, requests, decoding(stop=range(VOCABULARY))):
        assert [(len(completion.ids), completion.truncated) for completion in answers] == [(1, False)] * 2


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("limit", [1, 2, 10])
@pytest.mark.parametrize("stop", [(), STOPS, range(VOCABULARY)], ids=["none stop", "some stop", "all stop"])
def test_progress_counts_every_answer_once(
    model: LlamaForCausalLM, questions: list[Request], batch_size: int, limit: int, stop: Sequence[int]
) -> None:
    told: list[int] = []
    sampled(HF(batch_size), model, questions, decoding(max_new_tokens=limit, stop=stop), told.append)
    assert sum(told) == sum(len(question.keys) for question in questions)
    assert min(told) >= 0


def test_nothing_asked_is_nothing_answered(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
    assert sampled(HF(4), model, [], decoding()) == []
    assert sampled(HF(4), model, [Request((1, 2), ())], decoding()) == [[]]
    assert shapes == []


# What is refused


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_rows_is_refused_by_name(batch_size: int) -> None:
    with pytest.raises(ValueError, match=rf"^engine\.batch_size={batch_size}: expected at least 1"):
        HF(batch_size)


def test_an_answer_that_does_not_fit_into_the_context_is_refused_before_anything_is_sampled(
    model: LlamaForCausalLM, shapes: list[tuple[int, ...]]
) -> None:
    requests = [Request((1,), (0,)), Request(tokens(CONTEXT - 7, 1), (0,))]
    with pytest.raises(ValueError, match=rf"{CONTEXT - 7} tokens and sampling\.max_new_tokens=8 .* {CONTEXT} tokens"):
        sampled(HF(1), model, requests, decoding(max_new_tokens=8))
    assert shapes == []


def test_an_answer_may_fill_the_context(model: LlamaForCausalLM) -> None:
    ((completion,),) = sampled(HF(1), model, [Request(tokens(CONTEXT - 8, 1), (0,))], decoding(max_new_tokens=8))
    assert len(completion.ids) == 8


# Keys and values


def same_cache(ours: Cache, theirs: Cache) -> None:
    for layer, same in zip(ours.layers, theirs.layers, strict=True):
        assert layer.get_seq_length() == same.get_seq_length()
        assert layer.get_mask_sizes(1) == same.get_mask_sizes(1)
        assert torch.equal(layer.keys, same.keys) and torch.equal(layer.values, same.values)


@pytest.mark.parametrize("spare", [0, 1, 100])
def test_a_cache_with_room_holds_what_transformers_own_does(model: LlamaForCausalLM, spare: int) -> None:
    torch.manual_seed(0)
    theirs = DynamicCache(config=model.config)
    ours = PreallocatedCache(len(theirs.layers), spare)

    def add(rows: int, width: int) -> None:
        for index in range(len(theirs.layers)):
            keys, values = torch.randn(2, rows, 3, width, 4)
            for had, expected in zip(ours.update(keys, values, index), theirs.update(keys, values, index), strict=True):
                assert torch.equal(had, expected)
        same_cache(ours, theirs)

    add(4, 5)
    for indices in ([0, 2, 2, 3, 1], [4, 0]):
        for both in (ours, theirs):
            both.batch_select_indices(torch.tensor(indices))
        same_cache(ours, theirs)
        add(len(indices), 1)
        add(len(indices), 1)


def test_a_copy_of_a_cache_goes_on_by_itself() -> None:
    one = PreallocatedCache(2, spare=3)
    for index in range(2):
        one.update(torch.arange(24.0).view(1, 3, 2, 4) + index, torch.arange(24.0).view(1, 3, 2, 4), index)
    copied = one.copy()
    same_cache(copied, one)
    copied.update(torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 4), 0)
    assert (copied.get_seq_length(), one.get_seq_length()) == (3, 2)
    assert torch.equal(one.layers[0].padded[0][:, :, 2:], torch.zeros(1, 3, 3, 4))
    assert PreallocatedCache(2).copy().get_seq_length() == 0


def test_rows_take_the_tokens_that_they_are_to_begin_with() -> None:
    source = PreallocatedCache(1)
    keys = torch.arange(2 * 5.0).view(1, 2, 5, 1)  # of head h, token s: 5 h + s
    source.update(keys, -keys, 0)
    kept = PreallocatedCache(1, spare=2)
    kept.allocate(source, 3, 3)
    kept.copy_from(source, torch.tensor([2, 0]), torch.tensor([[0, 1, 4], [0, 0, 3]]))
    assert kept.layers[0].keys.flatten(1).tolist() == [[0, 0, 3, 5, 5, 8], [0] * 6, [0, 1, 4, 5, 6, 9]]
    assert torch.equal(kept.layers[0].values, -kept.layers[0].keys)


def test_a_step_copies_nothing_where_there_is_room(model: LlamaForCausalLM) -> None:
    (layer,) = PreallocatedCache(1, spare=3).layers
    token = torch.ones(2, 3, 1, 4)
    layer.update(token, token)
    where = layer.keys.data_ptr()
    for _ in range(3):
        layer.update(token, token)
        assert layer.keys.data_ptr() == where
    layer.update(token, token)
    assert layer.keys.data_ptr() != where
    assert layer.keys.shape == (2, 3, 5, 4)


def test_a_window_that_a_row_may_outgrow_is_left_to_transformers() -> None:
    config = MistralConfig(num_hidden_layers=2, sliding_window=20)
    network: Any = SimpleNamespace(config=config)
    assert probe.sees_all(network, 20)
    assert not probe.sees_all(network, 21)


# Prompts


def test_a_forward_pass_has_at_most_so_many_tokens_or_one_prompt(
    model: LlamaForCausalLM, shapes: list[tuple[int, ...]]
) -> None:
    some = [(1, 10 + length, *tokens(length, 0)) for length in (2, 1, 4, 5, 20, 9)]
    with torch.inference_mode():
        prefill.prefill(model, some, 0, 12)
    assert shapes == [(1, 1), (1, 10), (1, 6), (1, 10), (1, 21)]


def crowded(seed: int) -> list[tuple[int, ...]]:
    """Prompts that share beginnings of all lengths; some are the beginning of others, some equal."""
    draw = random.Random(seed)
    system = tuple(draw.choices(range(VOCABULARY), k=draw.randint(0, 6)))
    some = [system + tuple(draw.choices((7, 8), k=draw.randint(1, 14))) for _ in range(40)]
    return [*some, *draw.sample(some, 3), *(prompt[:-1] for prompt in draw.sample(some, 3) if len(prompt) > 1)]


@pytest.mark.parametrize("most_tokens", [1, 40, 10**6])
@pytest.mark.parametrize("kind", ["sdpa", "sdpa without rows", "eager", "flex_attention"])
def test_however_prompts_are_computed_their_answers_are_the_same(
    kind: str, most_tokens: int, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "sdpa without rows":
        kind = "sdpa"
        monkeypatch.setattr(prefill, "_mask", lambda model: torch.bool)
    dtype = torch.float64 if kind == "sdpa" else torch.float32  # eager attention pads with nan in float64
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=kind).eval()
    for seed in range(3):
        some = crowded(seed)
        close = {"rtol": 0, "atol": 1e-10} if kind == "sdpa" else {"rtol": 1e-4, "atol": 1e-4}
        with torch.compiler.set_stance("force_eager"), torch.inference_mode():
            logits_SV, lines, batch = prefill.prefill(network, some, 4, most_tokens)
            assert isinstance(batch, shared.SharedPrompts)
            for row, prompt in zip(logits_SV[lines], some, strict=True):
                torch.testing.assert_close(row, next_logits(network, prompt), **close)
            rows = list(dict.fromkeys(some))
            for step, gone in enumerate((0, 3, 30)):  # so many rows leave; prompts go when few are left
                going = [index for index in range(len(rows)) if index >= gone or (index % 2 and gone < 4)]
                going += going[-6:]  # and some go on as two
                batch.select(torch.tensor(going))
                rows = [(*rows[index], 7 + (index + step) % 2) for index in going]
                logits_SV = batch.forward(network, torch.tensor([row[-1] for row in rows])).logits[:, -1]
                for row, whole in zip(logits_SV, rows, strict=True):
                    torch.testing.assert_close(row, next_logits(network, whole), **close)


@torch.inference_mode()
def test_keys_and_values_of_a_prompt_are_held_once_and_go_when_it_is_answered(model: LlamaForCausalLM) -> None:
    some = [prompt for prompt in prompts([5, 6, 7, 8], shared=3) for _ in range(5)]
    _, _, batch = prefill.prefill(model, some, 4, 100)
    assert isinstance(batch, shared.SharedPrompts)

    def held() -> list[tuple[int, ...]]:
        return [tuple(part.layers[0].keys.shape[::2]) for part in (batch._prefix, batch._prompts)]

    assert held() == [(1, 3), (4, 8)]
    batch.select(torch.tensor([0, 1, 1, 2, 3]))
    assert held() == [(1, 3), (4, 8)]
    batch.select(torch.tensor([1, 3, 3]))
    assert held() == [(1, 3), (2, 8)]


@pytest.mark.parametrize(
    "stays, order",
    [
        ([1, 1, 1], [0, 1, 2]),
        ([0, 1, 1, 0, 1, 1], [4, 1, 2, 5]),
        ([1, 0, 0, 0], [0]),
        ([0, 0, 0, 1], [3]),
        ([0, 0], []),
    ],
)
def test_rows_that_stay_keep_their_places_but_those_that_fill_the_places_of_others(
    stays: list[int], order: list[int]
) -> None:
    assert cache.compact(torch.tensor(stays, dtype=torch.bool)).tolist() == order


def test_rows_are_dropped_without_a_copy_of_those_that_keep_their_places(model: LlamaForCausalLM) -> None:
    ours, theirs = PreallocatedCache(2, spare=3), DynamicCache(config=model.config)
    for both in (ours, theirs):
        for index in range(2):
            both.update(torch.arange(120.0).view(5, 3, 2, 4), torch.arange(120.0).view(5, 3, 2, 4) + index, index)
    where = ours.layers[0].keys.data_ptr()
    for indices in ([0, 4, 2], [2, 0, 1], [1]):
        ours.select(torch.tensor(indices))
        theirs.batch_select_indices(torch.tensor(indices))
        same_cache(ours, theirs)
    assert ours.layers[0].keys.data_ptr() == where
    PreallocatedCache(2).select(torch.tensor([0]))  # before the first token


def test_rows_come_to_be_several_without_a_copy_of_all_while_there_is_place() -> None:
    torch.manual_seed(0)
    ours, theirs = PreallocatedCache(1, spare=4, max_rows=10), DynamicCache()
    where = 0
    for indices in (range(4), [0, 1, 2, 3, 1], [4, 1, 0, 3, 2], [3, 1, 3, 0, 0, 0], [0, 5], range(2)):
        for both in (ours, theirs):
            if both.get_seq_length():
                both.select(torch.tensor(indices)) if both is ours else both.batch_select_indices(torch.tensor(indices))
        keys, values = torch.randn(2, len(indices), 3, 1, 4)
        for both in (ours, theirs):
            both.update(keys, values, 0)
        same_cache(ours, theirs)
        whole = ours.layers[0].padded
        assert all(len(part) == len(indices) and not part[:, :, ours.get_seq_length() :].any() for part in whole)
        if len(indices) == 5:
            assert where in (0, whole[0].data_ptr())
            where = whole[0].data_ptr()


@pytest.mark.parametrize(
    "lines, times, most",
    [
        ([5, 5, 5], [1, 1, 1], 5),
        ([64, *[1] * 40], [64, *[1] * 40], 1),  # 104 products of 4 beat 41 of 67
        ([4, *[2] * 30], [2, *[1] * 30], 2),
        ([16, 8], [2, 1], 8),  # 3 of 11 beat 2 of 19
    ],
)
def test_a_prompt_of_many_lines_is_held_more_than_once_where_that_costs_less(
    lines: list[int], times: list[int], most: int
) -> None:
    assert shared.copies(lines) == (times, most)


def test_answers_are_the_same_where_one_prompt_has_far_more_lines(model: LlamaForCausalLM) -> None:
    some = [(7, 8, 3), (7, 8, 5, 9), *prompts([3, 6, 4, 5, 8], shared=2)]
    with torch.inference_mode():
        _, _, batch = prefill.prefill(model, some, 4, 100)
        assert isinstance(batch, shared.SharedPrompts)
        rows = some
        for going, held in (([0, *[1] * 12, 2, 3, 4, 5, 6], 18), (range(2, 18), 16), ([10, 9, 0, 0], 1)):
            batch.select(torch.tensor(going))
            assert len(batch._lengths_P) == held
            rows = [(*rows[index], 6) for index in going]
            logits_SV = batch.forward(model, torch.full((len(rows),), 6)).logits[:, -1]
            for row, whole in zip(logits_SV, rows, strict=True):
                torch.testing.assert_close(row, next_logits(model, whole), rtol=0, atol=1e-10)


@torch.inference_mode()
def test_prompts_are_not_held_more_often_than_lines_ask_for_when_they_branch_one_after_the_other(
    model: LlamaForCausalLM,
) -> None:
    some = prompts([4] * 8, shared=2)
    _, _, batch = prefill.prefill(model, some, 4, 100)
    assert isinstance(batch, shared.SharedPrompts)
    rows, most = some, 0
    for prompt in range(8):  # each comes to have 16 lines
        going = [*range(len(rows)), *[prompt] * 15]
        batch.select(torch.tensor(going))
        rows = [rows[index] for index in going]
        assert {int(batch._original_P[p]) for p in batch._prompt_S} == set(range(8))
        most = max(most, len(batch._lengths_P))
    assert most < 40 and len(batch._lengths_P) < 12
    logits_SV = batch.forward(model, torch.full((len(rows),), 6)).logits[:, -1]
    for row, whole in zip(logits_SV, rows, strict=True):
        torch.testing.assert_close(row, next_logits(model, (*whole, 6)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sinks", "position_bias", "head_mask", "block_indices"])
def test_what_more_an_attention_is_given_is_refused(name: str) -> None:
    parts = [torch.zeros(1, 1, 1, 4) for _ in range(3)]
    with pytest.raises(ValueError, match="more than a softmax"):
        shared._attention(torch.nn.Identity(), *parts, None, **{name: torch.zeros(1)})


def test_another_attention_than_a_softmax_of_scores_is_not_imitated(folder: str) -> None:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=64,
        attn_logit_softcapping=0.5,
    )
    network = Gemma2ForCausalLM._from_config(config, dtype=torch.float32).eval()  # eager: nan in float64
    requests = [Request(prompt, (seed, seed + 50)) for seed, prompt in enumerate(prompts([4, 9, 2, 7], shared=4))]
    found = sampled(HF(8), network, requests, decoding(max_new_tokens=6))
    with torch.inference_mode():
        assert prefill._mask(network) is None
    alone = [sampled(HF(1), network, [request], decoding(max_new_tokens=6))[0] for request in requests]
    assert found == alone


def test_memory_that_runs_out_in_a_probe_is_no_verdict(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = load(folder, torch.float32)
    with monkeypatch.context() as played, torch.inference_mode():

        def raises(*args: object, **kwargs: object) -> None:
            raise torch.OutOfMemoryError("played")

        played.setattr(type(network), "forward", raises)
        with pytest.raises(torch.OutOfMemoryError):
            prefill.shares(network)
    with torch.inference_mode():
        assert prefill.shares(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_prompts_are_shared_in_every_dtype(folder: str, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        assert prefill._mask(load(folder, dtype)) == "rows"


def test_the_model_keeps_its_own_attention(model: LlamaForCausalLM) -> None:
    sampled(HF(8), model, [Request(prompt, (0,)) for prompt in MIXED], decoding(max_new_tokens=3))
    assert model.config._attn_implementation == "sdpa"


def test_a_model_of_its_own_attention_is_left_alone(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(prompt, (seed, seed + 100)) for seed, prompt in enumerate(crowded(1))]
    expected = sampled(HF(16), model, requests, decoding(max_new_tokens=5))
    monkeypatch.setattr(prefill, "_mask", lambda model: None)
    assert sampled(HF(16), model, requests, decoding(max_new_tokens=5)) == expected


# Compiled


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing has been compiled yet, in this process or before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_layers_answer_alike_are_compiled_once_and_are_as_they_were_afterwards(
    folder: str, questions: list[Request], fresh: None
) -> None:
    network = load(folder, torch.float64)
    expected = sampled(HF(64), network, questions, decoding(max_new_tokens=6))
    counted = torch._dynamo.utils.counters["stats"]
    counted.clear()
    assert sampled(HF(64, compiled=True), network, questions, decoding(max_new_tokens=6)) == expected
    graphs = counted["unique_graphs"]
    assert graphs == 4, "for several rows and for one, not for each layer or number of rows"
    assert sampled(HF(7, compiled=True), network, questions, decoding(max_new_tokens=6)) == expected
    assert counted["unique_graphs"] == graphs
    assert all(part._compiled_call_impl is None for part in network.modules())


def test_where_layers_cannot_be_compiled_the_way_out_is_told(
    folder: str, questions: list[Request], fresh: None
) -> None:
    network = load(folder, torch.float64)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ValueError, match=r"engine\.compiled=true: .*set engine\.compiled=false"),
    ):
        sampled(HF(64, compiled=True), network, questions, decoding(max_new_tokens=2))
    assert all(part._compiled_call_impl is None for part in network.modules())
    assert prefill._mask(network) == "rows"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_all_forms_of_a_model_are_compiled(folder: str, questions: list[Request], fresh: None) -> None:
    network, counted = load(folder, torch.float64), torch._dynamo.utils.counters
    counted.clear()
    config = LoraConfig(r=2, target_modules=["up_proj", "q_proj"], init_lora_weights=False)
    for _ in range(3):
        adapted = get_peft_model(network, config)
        for model in (adapted, adapted.unload()):
            found, expected = (
                sampled(HF(64, compiled=c), model, questions, decoding(max_new_tokens=3)) for c in (True, False)
            )
            assert found == expected
    assert not [reason for reason in counted["graph_break"] if "limit" in reason]
    assert counted["frames"]["ok"] == counted["frames"]["total"]


# Memory


@pytest.fixture
def reported() -> Iterator[list[int]]:
    """The numbers of answers that the journal is told of as `memory_short`."""
    found: list[int] = []
    with fallback.recording(lambda event, **facts: found.append(facts["rows"])):
        yield found


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine whose memory suffices for 5 rows at once; the numbers of rows that were tried."""
    tried: list[int] = []
    whole = decode.sample_batch

    def sample_batch(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *rest: Any) -> list[Completion]:
        tried.append(len(prompts))
        if len(prompts) > 5:
            rest[2](1)  # a row had ended when memory ran out
            raise torch.OutOfMemoryError("played")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decode, "sample_batch", sample_batch)
    return tried


def test_out_of_memory_halves_the_rows_for_good_and_changes_no_answer(
    model: LlamaForCausalLM, request: pytest.FixtureRequest, reported: list[int]
) -> None:
    requests = [Request(prompt, (seed, seed + 100)) for seed, prompt in enumerate(crowded(2))]
    some = decoding(max_new_tokens=6, stop=STOPS)
    batch = [(r, sample) for r in range(16) for sample in range(2)]
    expected = loaded(HF(64), model).sample(requests, batch, some, lambda k=1: None)
    tried: list[int] = request.getfixturevalue("short")
    ended: list[int] = []
    engine = loaded(HF(64), model)
    assert engine.sample(requests, batch, some, lambda k=1: ended.append(k)) == expected
    assert tried == [32, 16, 8, 4, 4, 4, 4, 4, 4, 4, 4] and reported == [16, 8, 4]
    assert sum(ended) == len(batch)
    tried.clear()
    engine.release()
    assert loaded(engine, model).sample(requests, batch, some, lambda k=1: None) == expected
    assert tried == [4] * 8 and reported == [16, 8, 4]


def test_a_single_answer_that_does_not_fit_ends_with_a_way_out(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> None:
        raise torch.OutOfMemoryError("played")

    monkeypatch.setattr(decode, "sample_batch", never)
    with pytest.raises(ValueError, match=r"prompt of 2 tokens.*cpu.*sampling\.max_new_tokens"):
        sampled(HF(2), model, [Request((1, 2), (0, 1))], decoding())


def test_rows_are_as_many_as_free_memory_holds_at_the_time(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, reported: list[int]
) -> None:
    """The tiny model: 2 layers, and keys and values in float64; each prompt counts once."""
    config = model.config
    token = 2 * 2 * config.num_key_value_heads * config.head_dim * 8
    need = 2 * 3 * token + 9 * (10 * token + 2 * config.vocab_size * 8)
    some = [(1, 2, 3)] * 5 + [(4, 5, 6)] * 4
    assert memory.batch_bytes(model, some, 10) == need
    limit = Limit()

    def rows(free: float) -> int:
        monkeypatch.setattr(memory, "free_bytes", lambda device, enough: free / 0.8)
        return limit.of(model, some, 10)

    assert rows(need + 1) == 9 and not reported
    assert rows(need / 2.5) == 3, "three parts"
    assert rows(need / 1.5) == 5 and reported == [3]
    assert rows(0) == 1
    assert rows(need + 1) == 9, "what was short is free again"
    limit.lower(2)
    assert rows(need + 1) == 2


def test_memory_that_the_c_library_holds_is_given_back_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    back: list[bool] = []
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 if back else 100))
    monkeypatch.setattr(processor, "give_back", lambda: back.append(True))
    monkeypatch.setattr(cgroup, "free_bytes", lambda: None)
    assert memory.free_bytes(torch.device("cpu"), 90) == 100 and not back
    assert memory.free_bytes(torch.device("cpu"), 101) == 500 and back


def test_no_more_memory_is_free_than_the_control_group_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500))
    monkeypatch.setattr(cgroup, "free_bytes", lambda: 300)
    assert memory.free_bytes(torch.device("cpu"), 90) == 300
    monkeypatch.setattr(cgroup, "free_bytes", lambda: 700)
    assert memory.free_bytes(torch.device("cpu"), 90) == 500


def test_a_cpu_without_memory_counts_as_out_of_memory_and_no_other_error_does(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decode.sample_batch

    def sample_batch(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *rest: Any) -> list[Completion]:
        torch.empty(2**50 if len(prompts) > 2 else 1)  # bytes that no machine has
        return whole(model, prompts, *rest)

    requests = [Request((1, seed), (0,)) for seed in range(2, 7)]
    expected = sampled(HF(5), model, requests, decoding())
    monkeypatch.setattr(decode, "sample_batch", sample_batch)
    assert sampled(HF(5), model, requests, decoding()) == expected

    def broken(*args: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(decode, "sample_batch", broken)
    with pytest.raises(RuntimeError, match="multiplied"):
        sampled(HF(5), model, requests, decoding())


def test_a_last_part_of_one_answer_may_not_fit(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, reported: list[int]
) -> None:
    whole = decode.sample_batch

    def sample_batch(model: LlamaForCausalLM, prompts: Sequence[tuple[int, ...]], *rest: Any) -> list[Completion]:
        if len(prompts[-1]) > 4:
            raise torch.OutOfMemoryError("played")
        return whole(model, prompts, *rest)

    monkeypatch.setattr(decode, "sample_batch", sample_batch)
    requests = [Request(prompt, (0,)) for prompt in ((1, 2), (1, 3), (1, 2, 3, 4, 5))]
    with pytest.raises(ValueError, match="a prompt of 5 tokens"):
        loaded(HF(3), model).sample(requests, [(0, 0), (1, 0), (2, 0)], decoding(), lambda k=1: None)
    assert reported == [1]
