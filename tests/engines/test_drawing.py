"""Limits of drawing: ids without text are never drawn, non-finite logits raise, and tiny temperatures are greedy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from sampled import sampled
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from stasc.engines import noise
from stasc.engines.engine import Decoding, Request
from stasc.engines.hf import decode
from stasc.engines.hf.engine import HF
from stasc.errors import NonFiniteError
from stasc.models import sources

NAN, INF = math.nan, math.inf
each_way = pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (0.8, 1.0), (0.8, 0.9), (1e-30, 0.9)])


def make(folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(sources.fetch("tiny:0", folder)).eval()


@pytest.fixture
def model(tmp_path: Path) -> LlamaForCausalLM:
    return make(tmp_path)


def draw(logits_BV: Tensor, temperature: float, top_p: float) -> Tensor:
    rows = torch.arange(len(logits_BV))
    return decode.draw(logits_BV, rows, rows, 0, temperature, top_p)


# Numbers that are not finite


@each_way
@pytest.mark.parametrize(
    ("wrong", "where"),
    [(NAN, [7]), (INF, [7]), (NAN, range(300)), (-INF, range(300)), (NAN, [299]), (INF, [3, 4]), (NAN, [0, 5])],
    ids=["a nan", "an infinity", "all nan", "all minus infinity", "the last", "two infinities", "two nan"],
)
def test_non_finite_logits_raise_an_error_that_names_their_rows(
    temperature: float, top_p: float, wrong: float, where: list[int]
) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    draw(logits, temperature, top_p)
    for row in (1, 3):
        logits[row, list(where)] = wrong
    with pytest.raises(decode.NonFiniteLogits) as raised:
        draw(logits, temperature, top_p)
    assert raised.value.rows == [1, 3]


@each_way
def test_tokens_with_logits_of_minus_infinity_are_no_error_and_never_drawn(temperature: float, top_p: float) -> None:
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))
    logits[:, ::2] = -INF
    assert (draw(logits, temperature, top_p) % 2 == 1).all()


def test_logits_of_a_sequence_without_samples_may_be_non_finite() -> None:
    logits = torch.randn(3, 300)
    logits[1] = NAN
    for temperature, top_p in ((0.0, 1.0), (0.8, 1.0), (0.8, 0.9)):
        decode.draw(logits, torch.tensor([0, 2]), torch.tensor([5, 6]), 0, temperature, top_p)


@each_way
def test_non_finite_logits_end_sampling_and_name_the_questions(
    model: LlamaForCausalLM, temperature: float, top_p: float
) -> None:
    requests = [Request((5, 6, 7 + i), (i, i + 10), f"q{i}") for i in range(5)]
    how = Decoding(temperature, top_p, 4, frozenset({0}))
    sampled(HF(64), model, requests, how)
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = NAN  # which only q2's prompt has
    with pytest.raises(NonFiniteError, match=r"^the logits are not finite: q2$"):
        sampled(HF(64), model, requests[:3], how)
    with torch.no_grad():
        model.get_output_embeddings().weight[100] = INF
    with pytest.raises(NonFiniteError, match=r"^the logits are not finite: q0, q1, q2 and 2 more$"):
        sampled(HF(64), model, requests, how)


# Ids without a text


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_ids_without_text_are_never_drawn(top_p: float) -> None:
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    ids = frozenset(range(250)) - {7, 100}
    known = decode.mask_unknown(logits, Decoding(1.0, top_p, 1, frozenset({260}), allowed_ids=ids))
    drawn = set(draw(known, 1.0, top_p).tolist())
    assert drawn <= ids | {260} and len(drawn) > 50
    assert any(id_ not in ids for id_ in draw(logits, 1.0, top_p).tolist())
    greedy = draw(known, 0.0, top_p)
    assert greedy.tolist() == [max(ids | {260}, key=lambda id_, row=row: row[id_]) for row in logits]


def test_logits_are_not_copied_if_all_ids_have_a_text() -> None:
    logits = torch.randn(3, 300)
    for ids in (None, frozenset(range(300)), frozenset(range(400))):
        same = decode.mask_unknown(logits, Decoding(1.0, 1.0, 1, frozenset(), allowed_ids=ids))
        assert same.shape == logits.shape and same.data_ptr() == logits.data_ptr()


@pytest.mark.parametrize("top_p", [0.9, 1.0])
def test_extra_ids_of_a_model_change_no_draw(tmp_path: Path, top_p: float) -> None:
    """The extra ids have all the probability, but their noise does not reach the others."""
    plain, padded = make(tmp_path), make(tmp_path)
    padded.resize_token_embeddings(2048, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[260:] = plain.get_output_embeddings().weight.repeat(7, 1)[: 2048 - 260]
    requests = [
        Request((5, 6, 7 + i), tuple(noise.noise_key(i, sample) for sample in range(5)), f"q{i}") for i in range(8)
    ]
    expected = sampled(HF(64), plain, requests, Decoding(1.0, top_p, 8, frozenset({0})))
    assert (
        sampled(HF(64), padded, requests, Decoding(1.0, top_p, 8, frozenset({0}), allowed_ids=frozenset(range(260))))
        == expected
    )
    anything = sampled(HF(64), padded, requests, Decoding(1.0, top_p, 8, frozenset({0})))
    assert any(id_ >= 260 for answers in anything for answer in answers for id_ in answer.ids)


# Cold


@pytest.mark.parametrize("top_p", [0.95, 1.0])
@pytest.mark.parametrize("temperature", [1e-20, 2e-20, 1e-21, 1e-30, 1.2e-38, 1e-38, 1e-40, 5e-324, 1e-300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_temperatures_near_0_are_greedy(dtype: torch.dtype, temperature: float, top_p: float) -> None:
    torch.manual_seed(0)
    logits = (1000 * torch.stack([torch.randperm(200) for _ in range(30)]) - 1e5).to(dtype)  # no ties of the largest
    assert torch.equal(draw(logits, temperature, top_p), logits.argmax(-1))
