"""The loss of a batch is that of the corrections and of nothing else, in rows and packed, and so is its gradient."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import END, assert_same, make, make_live, nll, read, train, weights
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from stasc.prefix_tree import attention, masks, probe
from stasc.prefix_tree.batch import Batch, Example, collate, tree
from stasc.prefix_tree.likelihood import Logprobs, logprobs
from stasc.prefix_tree.trie import partition
from stasc.training import micro_batches
from stasc.training.losses import NLL, Loss

Batched = Callable[[Sequence[Example]], Batch]


def packed(examples: Sequence[Example]) -> Batch:
    return tree(examples, torch.bool)


BATCHED = {"rows": collate, "packed": packed}
each_form = pytest.mark.parametrize("form", BATCHED.values(), ids=BATCHED)


pytestmark = pytest.mark.usefixtures("exact_norms")


def example(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Example:
    return Example("", prompt, completion)


def edge_weights(batch: Batch, weights: Sequence[float]) -> list[float]:
    """What each edge weighs in a sum over trained tokens."""
    edges = torch.zeros(len(batch.labels), dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(Logprobs(batch, edges).weighted(weights), edges)
    return found.tolist()


# A batch in rows.


def test_rows_are_padded_on_the_left_and_the_last_token_is_only_predicted() -> None:
    batch = collate([example((5, 6), (7, END)), example((8,), (9, 10, END))])
    assert batch.inputs["input_ids"].tolist() == [[5, 6, 7], [8, 9, 10]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.inputs["logits_to_keep"] == 3
    assert list(zip(batch.rows.tolist(), batch.columns.tolist(), batch.labels.tolist(), strict=True)) == [
        *((0, 1, 7), (0, 2, END)),
        *((1, 0, 9), (1, 1, 10), (1, 2, END)),
    ]
    assert edge_weights(batch, [1.0, 2.0]) == [1, 1, 2, 2, 2]
    assert edge_weights(batch, [1.0, 1.0]) == [1] * 5


def test_padding_is_masked_and_positions_count_from_the_first_token() -> None:
    batch = collate([example((5, 6, 7), (8, END)), example((9,), (END,))])
    assert batch.inputs["input_ids"].tolist()[1][-1:] == [9]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 1]]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0]]
    assert batch.labels.tolist() == [8, END, END]


# A batch as a tree.


def test_what_examples_share_stands_once_and_a_token_sees_what_leads_to_it() -> None:
    batch = packed([example((5, 6), (7, 8)), example((5, 6), (7, 9)), example((5, 4), (7,))])
    ids = batch.inputs["input_ids"][0].tolist()
    assert ids == [5, 6, 7, 4]
    assert batch.inputs["position_ids"].tolist() == [[0, 1, 2, 1]]
    assert batch.inputs["attention_mask"].shape == (1, 1, 4, 4)
    seen = [
        [other for other, sees in zip(ids, row, strict=True) if sees] for row in batch.inputs["attention_mask"][0, 0]
    ]
    assert seen == [[5], [5, 6], [5, 6, 7], [5, 4]]
    kept = [ids[token] for token in batch.inputs["logits_to_keep"].tolist()]
    trained = [kept[column] for column in batch.columns.tolist()]
    weights, counts = edge_weights(batch, [1.0, 10.0, 100.0]), edge_weights(batch, [1.0] * 3)
    assert list(zip(trained, batch.labels.tolist(), weights, counts, strict=True)) == [
        *((6, 7, 11.0, 2.0), (7, 8, 1.0, 1.0), (7, 9, 10.0, 1.0)),
        (4, 7, 100.0, 1.0),
    ]


def test_an_example_may_be_the_beginning_of_another_and_equal_ones_count_twice() -> None:
    batch = packed([example((5,), (6,)), example((5,), (6, 7)), example((5, 6), (7,)), example((5,), (6,))])
    assert batch.inputs["input_ids"].tolist() == [[5, 6]]
    assert list(zip(batch.columns.tolist(), batch.labels.tolist(), edge_weights(batch, [1.0] * 4), strict=True)) == [
        *((0, 6, 3.0), (1, 7, 2.0))
    ]


# The loss.


def llama(base: str) -> PreTrainedModel:
    return read(base)


def gpt2(base: str) -> PreTrainedModel:
    """Its positions are learned."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0)
    return GPT2LMHeadModel(config).double().eval()


def eager(base: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64, attn_implementation="eager")


def ragged(seed: int, prompts: int, completions: int) -> list[Example]:
    """Examples of any lengths, with several completions per prompt, of which some agree for a while or are equal."""
    draw = random.Random(seed)
    system = tuple(draw.choices(range(4, 200), k=draw.randint(0, 5)))
    found = []
    for p in range(prompts):
        prompt = system + tuple(draw.choices(range(4, 200), k=draw.randint(1, 12)))
        for c in range(completions):
            completion = tuple(draw.choices((7, 8), k=draw.randint(1, 6)))
            found.append(Example(f"{p}.{c}", prompt, completion))
    return found


def weights_of(examples: Sequence[Example], per: str) -> list[float]:
    """What each token of an example weighs in the mean per token, or per example."""
    if per == "token":
        return [1 / sum(len(example.completion) for example in examples)] * len(examples)
    return [1 / len(examples) / len(example.completion) for example in examples]


def gradients(
    network: nn.Module, batches: Sequence[Batch], per: str, step: Sequence[Example]
) -> tuple[float, dict[str, Tensor]]:
    network.zero_grad()
    losses = [NLL(per)(logprobs(network, batch), step) for batch in batches]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), {
        name: parameter.grad.clone() for name, parameter in network.named_parameters()
    }


@pytest.mark.parametrize("per", ["token", "example"])
@pytest.mark.parametrize(("prompts", "completions"), [(1, 1), (1, 6), (5, 1), (4, 5)])
@pytest.mark.parametrize(
    ("kind", "mask", "short"),
    [
        (llama, "rows", 256),
        (llama, "rows", 0),
        (llama, torch.bool, 0),
        (gpt2, "rows", 256),
        (gpt2, "rows", 0),
        (gpt2, torch.bool, 0),
        (eager, torch.float64, 0),
    ],
)
def test_loss_and_every_gradient_are_those_of_examples_computed_one_by_one(
    kind: Callable[[str], PreTrainedModel],
    mask: masks.Mask,
    short: int,
    prompts: int,
    completions: int,
    per: str,
    base: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "_SHORT", short)
    examples = ragged(prompts * 10 + completions, prompts, completions)
    weigh = weights_of(examples, per)
    network = kind(base)
    network.zero_grad()
    expected = sum(weight * nll(network, one) for weight, one in zip(weigh, examples, strict=True))
    expected.backward()
    one_by_one = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    assert not probe._fault(network, mask)
    forms = [[tree(examples, mask)]]
    forms += [[collate([one]) for one in examples]]
    if kind is not eager:  # whose padding is nan in float64
        forms += [[collate(examples)]]
    for size in (1, 2, 4, 8):
        split = partition([example.prompt + example.completion[:-1] for example in examples], 10**6, size)
        forms += [[tree([examples[i] for i in part], mask) for part in split]]
    scale = max(gradient.abs().max().item() for gradient in one_by_one.values())
    rel = 1e-6 if kind is eager else 1e-10  # its softmax is computed in float32
    for batches in forms:
        with masks.tree_attention(network, mask):
            loss, found = gradients(network, batches, per, examples)
        assert loss == pytest.approx(expected.item(), rel=rel)
        assert_same(found, one_by_one, atol=rel * scale)


@each_form
def test_the_prompt_carries_no_loss(form: Batched, base: str) -> None:
    """By the chain rule, the likelihoods of a completion's two halves multiply, wherever the prompt ends."""
    network = read(base)
    prompt, first, second = (1, 40, 41, 3), (70, 71), (72, 73, END)

    def loss(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
        return logprobs(network, form([example(prompt, completion)])).total().item()

    whole = loss(prompt, first + second)
    assert whole == pytest.approx(loss(prompt, first) + loss(prompt + first, second), rel=0, abs=1e-10)


def test_a_mean_per_token_weighs_tokens_alike_and_one_per_example_examples() -> None:
    examples = [example((1,), (2,)), example((1,), (2, 3, 4))]
    edges = torch.tensor([-1.0, -2.0, -4.0, -8.0], dtype=torch.float64)
    batch = collate(examples)
    assert NLL("token")(Logprobs(batch, edges), examples).item() == 15 / 4
    assert NLL("example")(Logprobs(batch, edges), examples).item() == pytest.approx((1 + 14 / 3) / 2)


def test_a_share_of_a_loss_is_divided_by_the_whole_step() -> None:
    step = [example((1,), (2,)), example((1,), (2, 3, 4))]
    logp = Logprobs(collate(step[:1]), torch.tensor([-3.0]))
    assert NLL("token")(logp, step).item() == 3 / 4
    assert NLL("example")(logp, step).item() == 3 / 2


def test_an_edge_of_several_examples_counts_for_each() -> None:
    """The completions (7, 8), (7, 9) and (7, 8) are three edges."""
    batch = packed([example((5,), (7, 8)), example((5,), (7, 9)), example((5,), (7, 8))])
    edges = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    logp = Logprobs(batch, edges)
    assert [tokens.tolist() for tokens in logp.tokens()] == [[-1, -2], [-1, -4], [-1, -2]]
    assert logp.by_example().tolist() == [-3, -5, -3]
    assert logp.total().item() == -11
    assert logp.weighted([1.0, 10.0, 100.0]).item() == -3 - 50 - 300
    (gradient,) = torch.autograd.grad((logp.by_example() * torch.tensor([1.0, 10.0, 100.0])).sum(), edges)
    assert gradient.tolist() == edge_weights(batch, [1.0, 10.0, 100.0]) == [111, 101, 10]


# Losses of your own.


class Advantage:
    """Weighs each example by how much the correction improved on the initial answer."""

    def __call__(self, logp: Logprobs, step: Sequence[Example]) -> Tensor:
        return -logp.weighted([(one.r2 - one.r1) / len(step) for one in logp.examples])


def margin(logp: Logprobs, step: Sequence[Example]) -> Tensor:
    """Is not linear in log-likelihoods, as those that compare with a reference model."""
    return -torch.nn.functional.logsigmoid(logp.by_example() + 10).sum() / len(step)


@pytest.mark.parametrize("changes", [{}, {"micro_batch_size": 2}, {"packing": False}], ids=["packed", "micro", "rows"])
@pytest.mark.parametrize(
    ("loss", "of_one"),
    [
        (Advantage(), lambda one, nll: (one.r2 - one.r1) * nll),
        (margin, lambda one, nll: torch.nn.functional.softplus(nll - 10)),
    ],
    ids=["advantage", "margin"],
)
def test_a_loss_of_your_own_is_minimised_and_the_reported_loss_stays_the_mean_per_token(
    loss: Loss, of_one: Callable[[Example, Tensor], Tensor], changes: dict[str, Any], base: str, tmp_path: Path
) -> None:
    draw = random.Random(0)
    examples = [replace(one, r1=draw.random(), r2=draw.random()) for one in ragged(2, 2, 3)]
    expected = read(base)
    costs = [nll(expected, one) for one in examples]
    (sum(of_one(one, cost) for one, cost in zip(examples, costs, strict=True)) / len(examples)).backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.05 * parameter.grad
    live = make_live(base)
    settings = make("full", batch_size=len(examples), **changes)
    model, training = train(settings, live, tmp_path / "1", examples=examples, loss=loss)
    assert_same(weights(live.load(model)), weights(expected), atol=1e-10)
    mean = sum(cost.item() for cost in costs) / sum(len(one.completion) for one in examples)
    assert training.loss == pytest.approx(mean, rel=1e-10)


class Uniform(nn.Module):
    """Gives every token of a vocabulary of 7 the same probability, and notes for how many positions it was asked."""

    def forward(self, input_ids: Tensor, logits_to_keep: int | Tensor, **_: object) -> Any:
        self.kept = logits_to_keep if isinstance(logits_to_keep, int) else len(logits_to_keep)
        self.logits = torch.zeros(len(input_ids), self.kept, 7, dtype=torch.bfloat16)
        return self


@each_form
def test_each_trained_token_of_a_clueless_model_costs_the_log_of_the_vocabulary(form: Batched) -> None:
    logp = logprobs(Uniform(), form([example((1, 2, 3), (4, 5)), example((6,), (0, 1, 2))]))
    assert torch.cat(logp.tokens()).tolist() == pytest.approx([-math.log(7)] * 5, rel=1e-6)
    assert logp.edges_E.dtype == torch.float32


@pytest.mark.parametrize(("form", "positions"), [(collate, 3), (packed, 2 + 3)])
def test_logits_are_computed_for_the_completions_alone(form: Batched, positions: int) -> None:
    network = Uniform()
    logprobs(network, form([example((1,) * 500, (4, 5)), example((6,), (0, 1, 2))]))
    assert network.kept == positions


# Which models can be packed.


def test_a_model_whose_window_is_shorter_than_an_example_is_computed_in_rows(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = read(base)
    assert probe.attends_to_all(network, 10**9)
    network.config.sliding_window = 20
    assert probe.attends_to_all(network, 20) and not probe.attends_to_all(network, 21)
    monkeypatch.setattr(probe, "attends_to_all", lambda network, longest: longest < 9)
    monkeypatch.setattr(micro_batches, "tree", lambda *batch: pytest.fail("it is packed"))
    with pytest.raises(pytest.fail.Exception):
        train(make("full"), make_live(base), tmp_path / "short", examples=[example((1, 2, 3), (4, 5))])
    train(make("full"), make_live(base), tmp_path / "long", examples=[example((1,) * 8, (4,))])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_blocks_of_a_tree_that_are_seen(base: str) -> None:
    network = AutoModelForCausalLM.from_pretrained(base, attn_implementation="flex_attention")
    examples = [
        Example(f"{p}.{c}", (1, p, *range(4, 250)), (4 + c, *range(60, 90), 9)) for p in range(2) for c in range(2)
    ]
    weigh = weights_of(examples, "token")
    with torch.compiler.set_stance("force_eager"), torch.no_grad():  # needs no C++ compiler; no gradient on a CPU
        mask, _ = probe.probe(network, torch.float32)
        assert mask == "blocks"
        batch = tree(examples, mask)
        (seen_TT,) = tree(examples, torch.bool).inputs["attention_mask"][0]
        padded = torch.nn.functional.pad(seen_TT, (0, -len(seen_TT) % 128) * 2)
        blocks = padded.unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(1).any(2)
        assert torch.equal(batch.inputs["attention_mask"].to_dense()[0, 0].bool(), blocks)
        assert blocks.sum() < len(blocks) * (len(blocks) + 1) / 2, "those of another prompt are left out"
        loss = NLL("token")(logprobs(network, batch), examples)
        expected = sum(weight * nll(network, one) for weight, one in zip(weigh, examples, strict=True))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.gpu
def test_gradients_by_flex_attention_are_those_of_rows_on_cuda(base: str) -> None:
    examples = ragged(3, 4, 5)
    flex, sdpa = (
        AutoModelForCausalLM.from_pretrained(base, attn_implementation=name, device_map="cuda")
        for name in ("flex_attention", "sdpa")
    )
    mask, _ = probe.probe(flex, torch.float32)
    assert mask == "blocks"
    loss, found = gradients(flex, [tree(examples, mask, "cuda").to(torch.device("cuda"))], "token", examples)
    expected, by_rows = gradients(sdpa, [collate(examples).to(torch.device("cuda"))], "token", examples)
    assert loss == pytest.approx(expected, rel=1e-4)
    scale = max(gradient.abs().max().item() for gradient in by_rows.values())
    assert_same(found, by_rows, atol=1e-3 * scale)


# Training with either.


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "changes",
    [
        {"packing": False},
        {"micro_batch_tokens": 1},
        {"micro_batch_size": 1},
        {"micro_batch_size": 2},
        {"gradient_checkpointing": True},
    ],
    ids=["rows", "single", "one", "two", "checkpoints"],
)
@pytest.mark.parametrize("per", ["token", "example"])
def test_neither_packing_nor_micro_batches_change_weights_or_loss(
    per: str, changes: dict[str, Any], method: str, base: str, tmp_path: Path
) -> None:
    examples, results = ragged(3, 4, 3), []
    for name, settings in (("packed", {}), ("other", changes)):
        live = make_live(base)
        both = {"epochs": 2, "batch_size": 8, **settings}
        model, training = train(make(method, **both), live, tmp_path / name, examples=examples, per=per)
        results.append((weights(live.load(model)), training))
    (whole, training), (parts, same) = results
    assert_same(whole, parts, atol=1e-10)
    assert same.loss == pytest.approx(training.loss, rel=1e-10)
    assert (same.steps, same.tokens, same.examples) == (training.steps, training.tokens, training.examples)
    assert training.steps == 4


def out_of_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """From now on there is memory for so many tokens at once. Returns: what was tried."""
    tried: list[int] = []

    def limited(network: nn.Module, batch: Batch) -> Logprobs:
        tried.append(batch.inputs["input_ids"].numel())
        logp = logprobs(network, batch)
        if tried[-1] > most:
            logp.edges_E.register_hook(lambda gradient: fail())
        return logp

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(micro_batches, "logprobs", limited)
    return tried


def test_a_training_that_runs_out_of_memory_goes_on_in_smaller_micro_batches(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    examples, live = ragged(5, 6, 2), make_live(base)
    settings = make("full", batch_size=12, epochs=2, micro_batch_tokens=400)
    model, training = train(settings, live, tmp_path / "whole", examples=examples)
    expected = weights(live.load(model))
    assert training.micro_batch_tokens == 400

    tried = out_of_memory(monkeypatch, 40)
    live = make_live(base)
    model, same = train(settings, live, tmp_path / "small", examples=examples)
    assert max(tried) > 40
    assert same.micro_batch_tokens == 25
    assert sum(size > 40 for size in tried) <= 4, "halved each time, and then kept"
    assert_same(weights(live.load(model)), expected, atol=1e-10)
    assert same.loss == pytest.approx(training.loss, rel=1e-10)
    assert [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()]


def test_no_memory_for_a_single_example_is_an_error(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory(monkeypatch, 1)
    with pytest.raises(torch.OutOfMemoryError):
        train(make("full"), make_live(base), tmp_path / "1")
    assert not (tmp_path / "1").exists()
