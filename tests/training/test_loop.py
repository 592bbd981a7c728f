"""A training takes the steps that its settings say, and reports the loss it had."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import (
    EXAMPLES,
    METHODS,
    TRAINED_TOKENS,
    assert_same,
    differ,
    make,
    make_live,
    nll,
    read,
    train,
    weights,
)
from torch import Tensor

from stasc.models.model import M_0, Model
from stasc.prefix_tree.batch import Example
from stasc.records import OptimizerStep
from stasc.training import micro_batches
from stasc.training.loop import Training
from stasc.training.methods import Full, Lora


@pytest.mark.usefixtures("exact_norms")
def test_one_step_moves_the_weights_against_the_gradient_of_the_mean_loss(base: str, tmp_path: Path):
    expected = read(base)
    mean = sum(nll(expected, example) for example in EXAMPLES) / TRAINED_TOKENS
    mean.backward()
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter -= 0.05 * parameter.grad

    live = make_live(base)
    model, training = train(make("full", batch_size=6), live, tmp_path / "1")

    assert_same(weights(live.load(model)), weights(expected), atol=1e-10)
    assert training == Training(
        pytest.approx(mean.item(), rel=1e-12),
        1,
        TRAINED_TOKENS,
        6,
        skipped=0,
        micro_batch_tokens=training.micro_batch_tokens,
    )


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("packing", [True, False])
def test_a_training_is_a_plain_loop_of_adamw_in_the_order_of_trainer_of_transformers(
    packing: bool, base: str, tmp_path: Path
):
    """Which seeds a generator with the seed plus the epoch."""
    network, seed, losses, tokens = read(base).train(), 7, 0.0, 0
    decayed = [parameter for name, parameter in network.named_parameters() if "norm" not in name]
    others = [parameter for name, parameter in network.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for epoch in range(3):
        order = torch.randperm(len(EXAMPLES), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for batch in ([EXAMPLES[i] for i in order[:4]], [EXAMPLES[i] for i in order[4:]]):
            trained = sum(len(example.completion) for example in batch)
            summed = sum(nll(network, example) for example in batch)
            (summed / trained).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            losses, tokens = losses + summed.item(), tokens + trained

    live = make_live(base)
    changes = {"optimizer": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5}
    settings = make("full", epochs=3, packing=packing, **changes)
    model, training = train(settings, live, tmp_path / "1", seed=seed)

    assert_same(weights(live.load(model)), weights(network), atol=1e-9)
    assert differ(weights(network), weights(read(base)))
    assert (training.loss, training.tokens) == (pytest.approx(losses / tokens, rel=1e-9), tokens)


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_change_neither_weights_nor_loss(base: str, tmp_path: Path, method: str, micro: int):
    results = []
    for micro_batch_size in (None, micro):
        live = make_live(base)
        settings = make(method, epochs=2, micro_batch_size=micro_batch_size)
        model, training = train(settings, live, tmp_path / str(micro_batch_size))
        results.append((weights(live.load(model)), training))
    (whole, training), (parts, same) = results
    assert_same(whole, parts, atol=1e-10)
    assert training == replace(same, loss=pytest.approx(same.loss, rel=1e-12))
    assert training.steps == 4


def test_the_reported_loss_is_the_mean_over_trained_tokens_whatever_the_batches(base: str, tmp_path: Path):
    network = read(base)
    mean = sum(nll(network, example).item() for example in EXAMPLES) / TRAINED_TOKENS
    settings = make("full", learning_rate=1e-12, batch_size=4, micro_batch_size=2, epochs=3)
    _, training = train(settings, make_live(base), tmp_path / "1")
    assert training.loss == pytest.approx(mean, rel=1e-6)
    assert (training.steps, training.tokens, training.examples) == (3 * 2, 3 * TRAINED_TOKENS, 6)


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "expected"), [(6, 4, 1, 2), (6, 4, 3, 6), (8, 4, 1, 2), (1, 4, 2, 2), (5, 1, 1, 5)]
)
def test_the_number_of_steps_is_known_before(examples: int, batch: int, epochs: int, expected: int):
    assert make("full", batch_size=batch, epochs=epochs).steps(examples) == expected


@pytest.mark.parametrize(
    ("examples", "max_steps", "steps_match", "expected"),
    [
        (6, 1, None, 1),
        (6, 2, None, 2),
        (6, 3, None, 3),
        (6, 4, None, 4),
        (6, 99, None, 4),
        (6, None, 9, 9),
        (1, None, 3, 3),
    ],
)
def test_steps_are_limited_or_given(examples: int, max_steps: int | None, steps_match: int | None, expected: int):
    """6 examples in batches of 4 are 2 steps, twice."""
    settings = make("full", batch_size=4, epochs=2, max_steps=max_steps, steps_match=steps_match)
    assert settings.steps(examples) == expected


def test_a_limit_and_a_number_of_steps_are_not_given_both():
    with pytest.raises(ValueError, match=r"^finetune\.max_steps=3: expected null where finetune\.steps_match says"):
        make("full", max_steps=3, steps_match=3)
    for name in ("max_steps", "steps_match"):
        with pytest.raises(ValueError, match=rf"^finetune\.{name}=0: expected null or at least 1"):
            make("full", **{name: 0})


def stepped(
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    folder: Path,
    settings: Full | Lora,
    examples: Sequence[Example],
    seed: int = 0,
) -> tuple[list[list[str]], Training]:
    """The examples of each step, by their ids."""
    seen: list[list[str]] = []
    backward = micro_batches.MicroBatches.backward

    def noted(self: Any, step: Sequence[Example]) -> list[micro_batches.MicroBatch]:
        seen.append([example.id for example in step])
        return backward(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(micro_batches.MicroBatches, "backward", noted)
        _, training = train(settings, make_live(base), folder, examples=examples, seed=seed)
    return seen, training


@pytest.mark.parametrize("shuffle", ["examples", "prompts"])
@pytest.mark.parametrize(("kept", "number"), [(1, 3), (2, 3), (3, 4), (6, 1), (6, 2), (6, 3), (6, 7)])
def test_matched_steps_are_as_many_as_said_each_of_a_whole_batch_in_turn_through_all_examples(
    kept: int, number: int, shuffle: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With more and with fewer examples than the steps hold, each is trained on as often as any other, or once more."""
    examples = EXAMPLES[:kept]
    settings = make("full", batch_size=4, steps_match=number, epochs=5, shuffle=shuffle)
    seen, training = stepped(monkeypatch, base, tmp_path / "1", settings, examples)
    assert [len(ids) for ids in seen] == [4] * number
    assert training.steps == number and training.examples == kept
    flat = [example for ids in seen for example in ids]
    for epoch in range(0, len(flat) - kept + 1, kept):
        assert sorted(flat[epoch : epoch + kept]) == [example.id for example in examples]
    trained = {example.id: len(example.completion) for example in examples}
    assert training.tokens == sum(trained[example] for example in flat)


def test_matched_steps_go_through_the_examples_in_another_order_each_time(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, _ = stepped(monkeypatch, base, tmp_path / "1", make("full", batch_size=6, steps_match=5), EXAMPLES)
    assert len(set(map(tuple, seen))) > 1


def test_a_limit_ends_the_epochs_early(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limited = make("full", batch_size=4, epochs=3, max_steps=3)
    seen, training = stepped(monkeypatch, base, tmp_path / "1", limited, EXAMPLES)
    assert [len(ids) for ids in seen] == [4, 2, 4]
    assert training.steps == 3
    whole, _ = stepped(monkeypatch, base, tmp_path / "2", make("full", batch_size=4, epochs=3), EXAMPLES)
    assert [len(ids) for ids in whole] == [4, 2] * 3
    assert whole[:3] == seen


@pytest.mark.parametrize("shorter", [{"steps_match": 4}, {"max_steps": 4, "epochs": 9}])
def test_the_schedule_and_the_warmup_are_those_of_the_steps_that_are_taken(
    base: str, tmp_path: Path, shorter: dict[str, int]
):
    settings = make("full", batch_size=1, learning_rate=1e-6, schedule="linear", warmup_ratio=0.5, **shorter)
    sizes = step_sizes(base, tmp_path / "1", settings, EXAMPLES[:1])
    assert [size / max(sizes) for size in sizes] == pytest.approx([0, 1 / 2, 1, 1 / 2], abs=1e-4)


def test_matched_steps_give_the_same_weights_each_time(base: str, tmp_path: Path):
    results = []
    for name in ("1", "2"):
        live = make_live(base)
        model, _ = train(make("lora", steps_match=5, dropout=0.2), live, tmp_path / name, seed=3)
        results.append(weights(live.load(model)))
    assert_same(*results)


def test_each_step_is_told(base: str, tmp_path: Path):
    told: list[OptimizerStep] = []
    settings = make("full", batch_size=4, micro_batch_size=1, epochs=2)
    _, training = train(settings, make_live(base), tmp_path / "1", on_step=told.append)
    assert len(told) == training.steps == settings.steps(len(EXAMPLES)) == 4


def test_the_figures_of_a_step_are_those_of_its_examples_and_of_the_gradient_before_clipping(base: str, tmp_path: Path):
    steps: list[OptimizerStep] = []
    settings = make(
        "full", batch_size=4, micro_batch_size=2, epochs=2, learning_rate=1e-12, schedule="linear", max_grad_norm=1e-3
    )
    _, training = train(settings, make_live(base), tmp_path / "1", on_step=steps.append, examples=EXAMPLES[:4])
    network = read(base)
    loss = sum(nll(network, example) for example in EXAMPLES[:4]) / (tokens := 4 + 2 + 1 + 8)
    loss.backward()
    norm = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm().item()

    assert [step.loss for step in steps] == pytest.approx([loss.item()] * 2, rel=1e-9)
    assert [step.grad_norm for step in steps] == pytest.approx([norm] * 2, rel=1e-6)
    assert norm > settings.max_grad_norm
    assert [step.learning_rate for step in steps] == [1e-12, 0.5e-12]
    assert [(step.tokens, step.input_tokens) for step in steps] == [(tokens, tokens + 4 + 2 + 8 + 1)] * 2
    assert [step.epoch for step in steps] == [1.0, 2.0]
    assert all(step.seconds > 0 for step in steps)
    assert training.loss == pytest.approx(loss.item(), rel=1e-9)


def test_the_epoch_of_a_step_is_the_share_of_examples_seen(base: str, tmp_path: Path):
    steps: list[OptimizerStep] = []
    train(make("full", batch_size=4, epochs=2), make_live(base), tmp_path / "1", on_step=steps.append)
    assert [step.epoch for step in steps] == pytest.approx([4 / 6, 1, 10 / 6, 2])


def step_sizes(base: str, folder: Path, settings: Full | Lora, examples: Sequence[Example]) -> list[float]:
    """The length of each step in the space of weights."""
    live, seen = make_live(base), []

    def snapshot(step: OptimizerStep | None = None) -> None:
        network = live.load(M_0, live.training_dtype)  # in memory, it is the one that is being trained
        seen.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))

    snapshot()
    train(settings, live, folder, examples=examples, on_step=snapshot)
    return [(after - before).norm().item() for before, after in pairwise(seen)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("constant_with_warmup", 0.5, [0, 1 / 2, 1, 1]),
        ("linear", 0.0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("linear", 0.5, [0, 1 / 2, 1, 1 / 2]),
        ("cosine", 0.0, [1, (1 + math.sqrt(0.5)) / 2, 1 / 2, (1 - math.sqrt(0.5)) / 2]),
    ],
)
def test_the_schedule_scales_the_steps_and_warmup_is_a_share_of_them(
    base: str, tmp_path: Path, schedule: str, warmup: float, factors: list[float]
):
    settings = make("full", batch_size=1, learning_rate=1e-6, schedule=schedule, warmup_ratio=warmup)
    sizes = step_sizes(base, tmp_path / "1", settings, [EXAMPLES[0]] * 4)  # so small that the gradient stays
    assert [size / max(sizes) for size in sizes] == pytest.approx(factors, abs=1e-4)


def test_a_gradient_longer_than_max_grad_norm_is_shortened_to_it(base: str, tmp_path: Path):
    sizes = step_sizes(base, tmp_path / "1", make("full", learning_rate=0.5, max_grad_norm=0.01), EXAMPLES[:4])
    assert sizes == pytest.approx([0.5 * 0.01], rel=1e-4)


def test_weight_decay_pulls_matrices_towards_zero_and_leaves_norms_alone(base: str, tmp_path: Path):
    after = []
    for weight_decay in (0.0, 0.5):
        live = make_live(base)
        settings = make("full", learning_rate=0.01, batch_size=6, weight_decay=weight_decay)
        model, _ = train(settings, live, tmp_path / str(weight_decay))
        after.append(live.load(model))
    for name, value in read(base).named_parameters():
        pulled = after[1].get_parameter(name) - after[0].get_parameter(name)
        expected = torch.zeros_like(value) if "norm" in name else -0.01 * 0.5 * value
        torch.testing.assert_close(pulled, expected, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(
    "optimizer",
    ["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_the_first_step_of_every_adam_is_the_learning_rate_against_the_sign_of_the_gradient(
    base: str, tmp_path: Path, optimizer: str
):
    before = read(base)
    sum(nll(before, example) for example in EXAMPLES).backward()
    live = make_live(base, torch.float32)
    settings = make("full", optimizer=optimizer, learning_rate=1e-3, batch_size=6)
    model, _ = train(settings, live, tmp_path / "1")
    for name, after in live.load(model).named_parameters():
        start = before.get_parameter(name)
        clear = start.grad.abs() > 1e-2  # beside which Adam's epsilon and the rounding of gradients are nothing
        step = (after.detach().double() - start.detach())[clear]
        torch.testing.assert_close(step, -1e-3 * start.grad[clear].sign(), rtol=1e-2, atol=1e-6)


def test_8_bit_states_are_chosen_anew_for_each_training(base: str, tmp_path: Path):
    """bitsandbytes keeps what was set for parameters by their position, for all optimizers of a process."""
    settings = make("lora", optimizer="adamw_8bit", learning_rate=1e-2, rank=256, epochs=3)  # fewer values stay in 32
    results = []
    for name in ("1", "2"):
        live = make_live(base, torch.float32)
        model, _ = train(settings, live, tmp_path / name)
        results.append(weights(live.load(model)))
        train(make("full", optimizer="adamw_8bit"), make_live(base, torch.float32), tmp_path / f"{name}-full")
    assert_same(*results)


def test_adafactor_lowers_the_loss(base: str, tmp_path: Path):
    live = make_live(base, torch.float32)
    settings = make("full", optimizer="adafactor", learning_rate=1e-3, batch_size=6)
    _, first = train(settings, live, tmp_path / "1")
    _, second = train(settings, live, tmp_path / "2", Model(tmp_path / "1"))
    assert second.loss < first.loss


@pytest.mark.parametrize(
    ("method", "optimizer", "needed"),
    [
        ("full", "adamw_torch", False),
        ("full", "adafactor", False),
        ("full", "adamw_8bit", True),
        ("full", "paged_adamw_32bit", True),
        ("lora", "sgd", False),
        ("lora", "paged_adamw_8bit", True),
        ("qlora", "sgd", True),
    ],
)
def test_bitsandbytes_is_needed_for_four_bits_and_for_its_optimizers(method: str, optimizer: str, needed: bool):
    assert make(method, optimizer=optimizer).needs_bitsandbytes is needed


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradient_checkpointing_gives_the_same_weights_and_ends_with_the_training(
    base: str, tmp_path: Path, method: str
):
    results = []
    for checkpointing in (False, True):
        live = make_live(base)
        model, _ = train(make(method, gradient_checkpointing=checkpointing), live, tmp_path / str(checkpointing))
        network = live.load(model)
        assert not any(getattr(module, "gradient_checkpointing", False) for module in network.modules())
        results.append(weights(network))
    assert_same(*results, atol=1e-10)


def test_gradient_checkpointing_is_on_while_training(base: str, tmp_path: Path):
    live, seen = make_live(base), set()

    def look(step: OptimizerStep) -> None:
        seen.update(getattr(module, "gradient_checkpointing", None) for module in live.load(M_0).modules())

    train(make("full", gradient_checkpointing=True), live, tmp_path / "1", on_step=look)
    assert True in seen and False not in seen


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_same_seed_gives_the_same_weights_and_another_one_others(base: str, tmp_path: Path, method: str):
    def trained(name: str, seed: int) -> dict[str, Tensor]:
        live = make_live(base)
        changes = {"dropout": 0.5} if method == "lora" else {}
        model, _ = train(make(method, batch_size=1, **changes), live, tmp_path / name, seed=seed)
        return weights(live.load(model))

    first = trained("a", 2**32 - 1)
    torch.rand(3)  # the state of torch's own generator decides nothing
    assert_same(first, trained("b", 2**32 - 1))
    assert differ(first, trained("c", 1))


@pytest.mark.parametrize("method", METHODS)
def test_training_warns_of_nothing_that_will_be_removed(base: str, tmp_path: Path, method: str):
    settings = make(method, gradient_checkpointing=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(settings, make_live(base, torch.float32, four_bit=settings.four_bit), tmp_path / "1")
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, FutureWarning)]
    assert [message for message in messages if "is_gradient_checkpointing" not in message] == []  # that is peft's


def order(monkeypatch: pytest.MonkeyPatch, base: str, folder: Path, seed: int, **changes: Any) -> list[list[str]]:
    """The examples of each step."""
    examples = [Example(f"{p}.{c}", (5, p + 4), (c + 10,)) for c in range(3) for p in range(6)]
    return stepped(monkeypatch, base, folder, make("full", epochs=2, **changes), examples, seed)[0]


@pytest.mark.parametrize("shuffle", ["examples", "prompts"])
def test_each_epoch_has_each_example_once_in_another_order_that_the_seed_decides(
    shuffle: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, same, other = (
        order(monkeypatch, base, tmp_path / str(n), seed, batch_size=3, shuffle=shuffle)
        for n, seed in enumerate((0, 0, 1))
    )
    assert one == same != other
    first, second = one[:6], one[6:]
    assert first != second
    for epoch in (first, second):
        assert sorted(name for step in epoch for name in step) == sorted(f"{p}.{c}" for p in range(6) for c in range(3))
    together = [len({name.partition(".")[0] for name in step}) == 1 for step in one]
    assert all(together) if shuffle == "prompts" else not all(together)
