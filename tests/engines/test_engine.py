"""The engine of transformers, against transformers' own generate and plain forward passes.

The model is tiny and random, in float64 where something is claimed to be exact.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch
from sampled import sampled
from tiny_lm import CONTEXT, MIXED, STOPS, VOCABULARY, crowded, decoding, load, next_logits, tokens
from transformers import (
    LlamaForCausalLM,
)

from stasc.engines import noise
from stasc.engines.engine import Completion, Request
from stasc.engines.hf import prefill
from stasc.engines.hf.engine import HF


def generated(model: LlamaForCausalLM, prompt: Sequence[int], stop: Sequence[int], limit: int) -> tuple[int, ...]:
    """Returns the answer of transformers' own generate to this prompt alone."""
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
    assert len(lengths) > 2 if stop else lengths == {12}  # otherwise the comparison would be weaker than it claims


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_stop_string_ends_an_answer_and_changes_no_other(model: LlamaForCausalLM, batch_size: int) -> None:
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


def test_greedy_ignores_top_p_and_noise(model: LlamaForCausalLM) -> None:
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


def test_later_logits_are_those_of_a_plain_forward_pass_after_samples_have_ended(model: LlamaForCausalLM) -> None:
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


def test_a_repeated_prompt_is_computed_once_even_if_its_requests_are_not_adjacent(
    model: LlamaForCausalLM, shapes: list[tuple[int, ...]]
) -> None:
    one, other = tokens(5, 1), tokens(5, 2)
    sampled(HF(2), model, [Request(one, (0,)), Request(other, (1,)), Request(one, (2,))], decoding(max_new_tokens=1))
    assert shapes == [(1, 4), (1, 1)] * 2


def test_ended_samples_leave_the_batch(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
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
    assert len(set(expected)) > 3 and expected != sorted(lengths), "some leave, and not all at the step they end"


def test_the_network_is_put_into_evaluation_mode(folder: str) -> None:
    network = load(folder, torch.float32).train()
    sampled(HF(4), network, [Request((1, 2), (0,))], decoding(max_new_tokens=1))
    assert not network.training


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
def test_batches_are_of_similar_size(rows: int, sizes: list[int]) -> None:
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


def test_equal_prompts_get_equal_answers_exactly_for_equal_keys(model: LlamaForCausalLM) -> None:
    prompt = tokens(7, 1)
    (one, other), (again, third) = sampled(
        HF(64), model, [Request(prompt, (1, 2)), Request(prompt, (1, 3))], decoding()
    )
    assert one == again
    assert len({one, other, third}) == 3


def test_noise_depends_on_the_position_in_the_answer(model: LlamaForCausalLM) -> None:
    """Gumbel-max, position by position, with plain forward passes: whatever the length of the prompt."""
    for prompt in (tokens(1, 3), tokens(25, 3)):
        ((completion,),) = sampled(HF(8), model, [Request(prompt, (42,))], decoding(0.7, max_new_tokens=6))
        for position, id_ in enumerate(completion.ids):
            gumbel = noise.gumbel_all(torch.tensor([42]), position, VOCABULARY)[0]
            assert id_ == (next_logits(model, prompt + completion.ids[:position]) / 0.7 + gumbel).argmax()


@pytest.mark.parametrize("kind", ["shared", "plain"])
def test_equal_samples_share_a_sequence_and_answer_as_they_do_alone(
    kind: str, model: LlamaForCausalLM, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At low temperatures samples often draw the same, but not forever; some prompts have few samples, some many."""
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
    assert any(computed > len(set(rows)) for computed, rows in zip(steps, going, strict=False)), (
        "some unused sequences stay a while"
    )


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
def test_a_limit_of_one_token_needs_no_forward_pass_after_the_prompt(
    model: LlamaForCausalLM, stops: bool, shapes: list[tuple[int, ...]]
) -> None:
    first = greedy(model, 10, ()).ids[0]
    shapes.clear()
    assert greedy(model, 1, (first,) if stops else ()) == Completion((first,), truncated=not stops)
    assert len(shapes) == 2  # the prefix and the last token of the prompt


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


def test_no_requests_give_no_completions(model: LlamaForCausalLM, shapes: list[tuple[int, ...]]) -> None:
    assert sampled(HF(4), model, [], decoding()) == []
    assert sampled(HF(4), model, [Request((1, 2), ())], decoding()) == [[]]
    assert shapes == []


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
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


def test_the_model_keeps_its_own_attention(model: LlamaForCausalLM) -> None:
    sampled(HF(8), model, [Request(prompt, (0,)) for prompt in MIXED], decoding(max_new_tokens=3))
    assert model.config._attn_implementation == "sdpa"
