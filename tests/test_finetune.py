"""Fine-tuning: the loss is that of the correction and of nothing else, and each method trains what it says it trains.

In float64 on a model of 2 layers with random weights, so that what has to agree agrees to the last digits.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from stasc import sources, trainer
from stasc.finetune import (
    IGNORE,
    Example,
    Full,
    Lora,
    NonFiniteError,
    Optimization,
    QLora,
    Training,
    collate,
    loss_sum,
    steps,
)
from stasc.model import M_0, LiveModel, Model

CPU = torch.device("cpu")
END = 0  # the end token of the tiny model; ids 4 and above are bytes
EXAMPLES = [
    Example("a", prompt=(1, 40, 41, 3), completion=(70, 71, 72, END)),
    Example("b", prompt=(2, 50), completion=(80, END)),
    Example("c", prompt=(1, 60, 61, 62, 63, 64, 65, 3), completion=(90,)),
    Example("d", prompt=(9,), completion=(91, 92, 93, 94, 95, 96, 97, END)),
    Example("e", prompt=(5, 6, 7), completion=(70, 70, END)),
    Example("f", prompt=(2, 2, 2, 2, 3), completion=(END,)),
]
TRAINED_TOKENS = 4 + 2 + 1 + 8 + 3 + 1
METHODS = ("full", "lora", "qlora")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sources.fetch("tiny:0", tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """A training ends in a full garbage collection, which takes its time over all that was ever imported."""
    gc.freeze()
    yield
    gc.unfreeze()


def make(method: str, **changes: Any) -> Full | Lora:
    """A method with plain settings, of which the test sets what it is about."""
    kind = {"full": Full, "lora": Lora, "qlora": QLora}[method]
    settings = {
        "suffix": "",
        "learning_rate": 0.05,
        "epochs": 1,
        "batch_size": 4,
        "micro_batch_size": None,
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "on_nonfinite": "abort",
        "max_skipped_steps": 10,
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": ["all-linear"],
        "dora": False,
        "rslora": False,
    } | changes
    names = {field.name for field in fields(kind)}
    assert changes.keys() <= names
    return kind(**{name: value for name, value in settings.items() if name in names})


def make_live(base: str, dtype: torch.dtype = torch.float64, *, four_bit: bool = False) -> LiveModel:
    return LiveModel(base, None, CPU, dtype, four_bit=four_bit)


def make_both(base: str, method: str) -> tuple[Full | Lora, LiveModel]:
    """A method and a model that it can train, QLoRA too."""
    settings = make(method)
    return settings, make_live(base, torch.float32, four_bit=settings.four_bit)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def read(base: str) -> nn.Module:
    """M_0 as anyone would read it, in float64."""
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)


def logits(network: nn.Module) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network(input_ids=torch.tensor([[1, 40, 41, 3, 70, 71]])).logits


def nll(network: nn.Module, example: Example) -> Tensor:
    """The negative log-likelihood of one completion: no padding, all logits, one token after the other."""
    ids = example.prompt + example.completion
    log_probs = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(log_probs[t - 1, ids[t]] for t in range(len(example.prompt), len(ids)))


def nothing() -> None:
    pass


def train(
    settings: Full | Lora,
    live: LiveModel,
    folder: Path,
    start: Model = M_0,
    examples: Sequence[Example] = EXAMPLES,
    seed: int = 0,
    advance: Callable[[], None] = nothing,
) -> tuple[Model, Training]:
    return settings(live, start, examples, folder, seed, advance)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


# A batch.


def batch_of(*conversations: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, Tensor]:
    """The batch of these prompts and completions."""
    return collate([Example("", prompt, completion) for prompt, completion in conversations])


def test_a_batch_is_padded_on_the_left_and_labels_are_the_completions():
    batch = batch_of(((5, 6), (7, END)), ((8,), (9, 10, END)))
    assert batch["input_ids"].tolist() == [[5, 6, 7, END], [8, 9, 10, END]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[IGNORE, IGNORE, 7, END], [IGNORE, 9, 10, END]]


def test_padding_is_masked_and_positions_count_from_the_first_token():
    batch = batch_of(((5, 6, 7), (8, END)), ((9,), (END,)))
    assert batch["input_ids"].tolist()[1][-2:] == [9, END]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
    assert batch["labels"].tolist() == [[IGNORE, 8, END], [IGNORE, IGNORE, END]]


def test_the_labels_of_any_batch_are_the_completions_and_never_stand_in_the_first_column():
    batch = collate(EXAMPLES)
    assert batch["labels"].shape == (len(EXAMPLES), 1 + 8)
    assert (batch["labels"][:, 0] == IGNORE).all()
    assert [tuple(row[row != IGNORE].tolist()) for row in batch["labels"]] == [e.completion for e in EXAMPLES]
    trained = batch["labels"] != IGNORE
    assert (batch["input_ids"][:, -9:][trained] == batch["labels"][trained]).all()


@pytest.mark.parametrize(("prompt", "completion"), [((5,), ()), ((), (5,)), ((), ())])
def test_an_example_without_prompt_or_completion_is_named(prompt: tuple[int, ...], completion: tuple[int, ...]):
    with pytest.raises(ValueError, match="question 7, answer 0: no token to train on"):
        collate([EXAMPLES[0], Example("question 7, answer 0", prompt, completion), EXAMPLES[1]])


# The loss.


def test_the_loss_of_a_ragged_batch_is_the_sum_over_examples_computed_one_by_one(base: str):
    network, other = read(base), read(base)
    loss = loss_sum(network, collate(EXAMPLES))
    expected = sum(nll(other, example) for example in EXAMPLES)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), rel=0, abs=1e-10)

    loss.backward()
    expected.backward()

    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert_same(gradients, {name: parameter.grad for name, parameter in other.named_parameters()}, atol=1e-10)


def test_the_prompt_carries_no_loss(base: str):
    """By the chain rule, the likelihoods of a completion's two halves multiply, wherever the prompt ends."""
    network = read(base)
    prompt, first, second = (1, 40, 41, 3), (70, 71), (72, 73, END)

    def loss(prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
        return loss_sum(network, batch_of((prompt, completion))).item()

    whole = loss(prompt, first + second)
    assert whole == pytest.approx(loss(prompt, first) + loss(prompt + first, second), rel=0, abs=1e-10)


class Uniform(nn.Module):
    """Gives every token of a vocabulary of 7 the same probability, and notes how many logits were asked for."""

    def forward(self, input_ids: Tensor, logits_to_keep: int, **_: object) -> Any:
        self.kept = logits_to_keep
        self.logits = torch.zeros(*input_ids.shape, 7, dtype=torch.bfloat16)[:, -logits_to_keep:]
        return self


def test_each_trained_token_of_a_clueless_model_costs_the_log_of_the_vocabulary():
    loss = loss_sum(Uniform(), batch_of(((1, 2, 3), (4, 5)), ((6,), (0, 1, 2))))
    assert loss.item() == pytest.approx(5 * math.log(7), rel=1e-6)
    assert loss.dtype == torch.float32


def test_logits_are_computed_for_the_completions_alone():
    network = Uniform()
    loss_sum(network, batch_of(((1,) * 500, (4, 5)), ((6,), (0, 1, 2))))
    assert network.kept == 3 + 1


# Training.


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
    assert training == Training(pytest.approx(mean.item(), rel=1e-12), 1, TRAINED_TOKENS, examples=6, skipped=0)


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
    assert steps(make("full", batch_size=batch, epochs=epochs), examples) == expected


def test_each_step_is_told(base: str, tmp_path: Path):
    told: list[None] = []
    settings = make("full", batch_size=4, micro_batch_size=1, epochs=2)
    _, training = train(settings, make_live(base), tmp_path / "1", advance=lambda: told.append(None))
    assert len(told) == training.steps == steps(settings, len(EXAMPLES)) == 4


def step_sizes(base: str, folder: Path, settings: Full | Lora, examples: Sequence[Example]) -> list[float]:
    """The length of each step in the space of weights."""
    live, seen = make_live(base), []

    def snapshot() -> None:
        network = live.load(M_0, live.training_dtype)  # in memory, it is the one that is being trained
        seen.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))

    snapshot()
    train(settings, live, folder, examples=examples, advance=snapshot)
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

    def look() -> None:
        seen.update(getattr(module, "gradient_checkpointing", None) for module in live.load(M_0).modules())

    train(make("full", gradient_checkpointing=True), live, tmp_path / "1", advance=look)
    assert True in seen and False not in seen


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_loss_that_is_no_number_names_the_learning_rate(base: str, tmp_path: Path, method: str):
    settings = make(method, learning_rate=1e30, batch_size=1, epochs=2)
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is (nan|inf) at step \d+, on [a-f]: lower finetune\.learning_rate \(1e\+30\)",
    ):
        train(settings, make_live(base, torch.float32), tmp_path / "1")
    assert not (tmp_path / "1").exists()


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


# Steps that are not finite.


def poison(monkeypatch: pytest.MonkeyPatch, what: str, value: float, ids: str = "d") -> None:
    """Makes the loss of some examples `value` and leaves its gradient as it is, or the other way round."""

    def poisoned(network: nn.Module, batch: dict[str, Any]) -> Tensor:
        summed = loss_sum(network, batch)
        if not any(example.id in ids for example in batch["examples"]):
            return summed
        if what == "loss":
            return summed + value
        summed.register_hook(lambda gradient: gradient * value)
        return summed

    monkeypatch.setattr(trainer, "loss_sum", poisoned)


each_fault = pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("loss", math.nan, "the loss is nan"),
        ("loss", -math.inf, "the loss is -inf"),
        ("gradient", math.nan, "the norm of the gradient is nan"),
        ("gradient", math.inf, "the norm of the gradient is (nan|inf)"),
    ],
    ids=["nan loss", "infinite loss", "nan gradient", "infinite gradient"],
)
BAD, GOOD = EXAMPLES[3], EXAMPLES[0]


@each_fault
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_what_is_not_finite_is_stopped_before_the_step_and_nothing_is_written(
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    max_grad_norm: float,
    what: str,
    value: float,
    said: str,
):
    poison(monkeypatch, what, value)
    live = make_live(base)
    settings = make(method, optimizer="adamw_torch", weight_decay=0.1, max_grad_norm=max_grad_norm)
    with pytest.raises(NonFiniteError, match=rf"^{said} at step 1, on d: lower finetune\.learning_rate \(0\.05\)"):
        train(settings, live, tmp_path / "1", examples=[BAD])
    assert not (tmp_path / "1").exists()
    network = live.load(M_0, live.training_dtype)  # in memory, it is the one that was not trained
    assert torch.equal(logits(network), logits(read(base)))


@pytest.mark.parametrize(("what", "named"), [("loss", "d"), ("gradient", "[a-f](; [a-f]){5}")])
def test_a_message_names_the_examples_of_the_loss_or_all_those_of_the_gradient(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, named: str
):
    poison(monkeypatch, what, math.nan)
    settings = make("full", batch_size=6, micro_batch_size=1)
    with pytest.raises(NonFiniteError, match=rf"at step 1, on {named}: lower .* finetune\.on_nonfinite=skip_step$"):
        train(settings, make_live(base), tmp_path / "1")


@each_fault
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_skipped_step_leaves_weights_and_optimizer_as_if_it_had_not_been(
    base: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    max_grad_norm: float,
    what: str,
    value: float,
    said: str,
):
    poison(monkeypatch, what, value)
    check_skips(base, tmp_path, torch.float64, method, optimizer="adamw_torch", max_grad_norm=max_grad_norm)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_every_optimizer_skips_a_step(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str):
    poison(monkeypatch, "gradient", math.nan)
    check_skips(base, tmp_path, torch.float32, "full", optimizer=optimizer)


def check_skips(base: str, folder: Path, dtype: torch.dtype, method: str, **changes: Any) -> None:
    """Trained on a good and a poisoned example in turn, a model is that trained on the good one alone."""
    changes |= {"learning_rate": 1e-3, "batch_size": 1, "epochs": 3, "weight_decay": 0.1}
    trained = []
    for name, examples in (("both", [GOOD, BAD]), ("good", [GOOD])):
        live = make_live(base, dtype)
        settings = make(method, on_nonfinite="skip_step", max_skipped_steps=3, **changes)
        model, training = train(settings, live, folder / name, examples=examples)
        trained.append((weights(live.load(model, live.training_dtype if method == "full" else None)), training))
    (both, training), (good, expected) = trained
    assert_same(both, good)
    assert expected == replace(training, examples=1, skipped=0)
    assert (training.steps, training.tokens, training.examples, training.skipped) == (3, 3 * 4, 2, 3)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_is_skipped_with_all_its_micro_batches_and_no_loss_of_them_is_reported(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
):
    poison(monkeypatch, what, math.nan)
    told: list[None] = []
    seen: list[str] = []
    compute_loss = trainer.CompletionTrainer.compute_loss

    def watched(self: Any, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        seen.extend(example.id for example in inputs["examples"])
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.CompletionTrainer, "compute_loss", watched)
    live = make_live(base)
    settings = make("full", batch_size=3, micro_batch_size=1, on_nonfinite="skip_step")
    _, training = train(settings, live, tmp_path / "1", advance=lambda: told.append(None))

    counted = seen[:3] if "d" in seen[3:] else seen[3:]
    taken = [example for example in EXAMPLES if example.id in counted]
    tokens = sum(len(example.completion) for example in taken)
    network = read(base)  # of two steps one is skipped, so that the other one's loss is of M_0
    mean = sum(nll(network, example).item() for example in taken) / tokens
    assert training == Training(pytest.approx(mean, rel=1e-12), 1, tokens, 6, skipped=1)
    assert len(told) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "stasc.trainer"]
    step = 1 if "d" in seen[:3] else 2
    named = "d" if what == "loss" else "; ".join(seen[3 * (step - 1) : 3 * step])
    assert f"at step {step}, on {named}: skipped" in warning


def scale_losses(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Scales losses as training in float16 does, by torch's scaler: it halves the scale when a gradient overflows."""
    create = trainer.CompletionTrainer.create_accelerator_and_postprocess

    def with_scaler(self: trainer.CompletionTrainer) -> None:
        create(self)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def unscale(self: Accelerator) -> None:
        for optimizer in self._optimizers:
            self.scaler.unscale_(optimizer.optimizer)

    monkeypatch.setattr(trainer.CompletionTrainer, "create_accelerator_and_postprocess", with_scaler)
    monkeypatch.setattr(Accelerator, "unscale_gradients", unscale)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_overflows_for_its_scale_is_left_to_the_scaler(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float
):
    changes = {"optimizer": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": max_grad_norm}
    live = make_live(base)
    model, expected = train(make("full", epochs=2, **changes), live, tmp_path / "1", examples=[GOOD])
    unscaled = weights(live.load(model))

    def overflowing(network: nn.Module, batch: dict[str, Any]) -> Tensor:
        summed = loss_sum(network, batch)
        summed.register_hook(lambda gradient: gradient if gradient * 4 <= 2 else gradient * math.inf)
        return summed  # its gradient is the scale by 4 trained tokens: what is scaled by more than 2 overflows

    monkeypatch.setattr(trainer, "loss_sum", overflowing)
    scale_losses(monkeypatch, 16.0)
    live = make_live(base)
    model, training = train(make("full", epochs=5, **changes), live, tmp_path / "2", examples=[GOOD])
    assert training == replace(expected, skipped=3)  # those scaled by 16, 8 and 4
    assert_same(weights(live.load(model)), unscaled)


def test_a_gradient_that_is_not_finite_at_any_scale_is_stopped(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, "gradient", math.nan)
    scale_losses(monkeypatch, 4.0)
    with pytest.raises(NonFiniteError, match="gradient is nan at step 3, on d"):  # after 4 and 2
        train(make("full", epochs=5), make_live(base), tmp_path / "1", examples=[BAD])


def test_a_loss_that_is_not_finite_is_stopped_at_every_scale(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, "loss", math.nan)
    scale_losses(monkeypatch, 4.0)
    with pytest.raises(NonFiniteError, match="loss is nan at step 1, on d"):
        train(make("full", epochs=5), make_live(base), tmp_path / "1", examples=[BAD])


def test_more_skipped_steps_than_allowed_abort(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, "gradient", math.nan)
    told: list[None] = []
    settings = make("full", batch_size=1, epochs=3, on_nonfinite="skip_step", max_skipped_steps=2)
    message = r"at step [56], on d, with 2 steps skipped before: .* or raise finetune\.max_skipped_steps$"
    with pytest.raises(NonFiniteError, match=message):
        train(settings, make_live(base), tmp_path / "1", examples=[GOOD, BAD], advance=lambda: told.append(None))
    assert len(told) in (4, 5)
    assert not (tmp_path / "1").exists()


def test_a_bound_of_0_skips_nothing(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, "loss", math.nan)
    with pytest.raises(NonFiniteError, match="at step 1, on d, with 0 steps skipped before"):
        train(
            make("lora", on_nonfinite="skip_step", max_skipped_steps=0), make_live(base), tmp_path / "1", examples=[BAD]
        )


def test_a_training_whose_every_step_is_skipped_is_none(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, "gradient", math.inf)
    with pytest.raises(NonFiniteError, match=r"none of 2 steps had a finite loss and gradient: lower finetune\.lear"):
        train(make("full", epochs=2, on_nonfinite="skip_step"), make_live(base), tmp_path / "1", examples=[BAD])
    assert not (tmp_path / "1").exists()


# Full.


def test_a_fully_trained_model_reloads_as_it_is_in_memory(base: str, tmp_path: Path):
    live = make_live(base)
    model, _ = train(make("full"), live, tmp_path / "1")
    assert model == Model(weights=tmp_path / "1", adapter=None)
    in_memory = weights(live.load(model))
    assert_same(weights(read(str(tmp_path / "1"))), in_memory)
    assert_same(weights(make_live(base).load(model)), in_memory)
    assert differ(in_memory, weights(read(base)))


def test_a_fully_trained_model_has_the_configuration_of_m_0(base: str, tmp_path: Path):
    train(make("full", gradient_checkpointing=True), make_live(base), tmp_path / "1")
    of_m_0, of_m_1 = (json.loads(Path(folder, "config.json").read_text()) for folder in (base, tmp_path / "1"))
    assert of_m_1 == of_m_0 | {"dtype": "float64"}


@pytest.mark.parametrize("method", METHODS)
def test_the_files_of_m_0_are_never_touched(base: str, tmp_path: Path, method: str):
    def digests() -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in Path(base).iterdir()}

    before = digests()
    settings, live = make_both(base, method)
    model, _ = train(settings, live, tmp_path / "1")
    train(settings, live, tmp_path / "2", model)
    assert digests() == before


@pytest.mark.parametrize("method", METHODS)
def test_m_0_is_as_before_right_after_a_training(base: str, tmp_path: Path, method: str):
    settings, live = make_both(base, method)
    before = logits(live.load(M_0))
    train(settings, live, tmp_path / "1")
    assert torch.equal(logits(live.load(M_0)), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_start_gives_the_same_model_however_many_were_trained_before(base: str, tmp_path: Path, method: str):
    settings, live = make_both(base, method)
    m_1, _ = train(settings, live, tmp_path / "1")
    first = weights(live.load(m_1))
    m_2, _ = train(settings, live, tmp_path / "2")
    assert_same(weights(live.load(m_2)), first)


@pytest.mark.parametrize("method", METHODS)
def test_an_evolving_start_goes_on_alike_from_memory_and_from_disk(base: str, tmp_path: Path, method: str):
    settings = make(method)
    dtype = torch.float32 if settings.four_bit else torch.float64
    live = make_live(base, dtype, four_bit=settings.four_bit)
    m_1, _ = train(settings, live, tmp_path / "1")
    first = weights(live.load(m_1))
    m_2, _ = train(settings, live, tmp_path / "2", m_1, seed=1)
    from_memory = weights(live.load(m_2))

    restarted = make_live(base, dtype, four_bit=settings.four_bit)
    restarted.load(M_0)  # which is then in the way
    m_2, _ = train(settings, restarted, tmp_path / "again", m_1, seed=1)

    assert_same(weights(restarted.load(m_2)), from_memory)
    assert differ(from_memory, first)


def test_weights_are_trained_in_32_bits_where_the_model_is_sampled_in_16(base: str, tmp_path: Path):
    live = make_live(base, torch.bfloat16)
    model, _ = train(make("full", learning_rate=1e-5), live, tmp_path / "1")
    saved, start = load_file(tmp_path / "1" / "model.safetensors"), load_file(f"{base}/model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    moved = {name for name in saved if differ({"": saved[name]}, {"": start[name]})}
    lost = {name for name in moved if torch.equal(saved[name].bfloat16(), start[name].bfloat16())}
    assert moved == saved.keys() and lost, "steps too small for 16 bits are kept"
    assert live.load(model).dtype == torch.bfloat16
    assert live.load(model, live.training_dtype).dtype == torch.float32


def test_training_in_16_bits_computes_in_16_bits(base: str, tmp_path: Path):
    of_32, of_16 = (
        train(make("full", batch_size=6), make_live(base, dtype), tmp_path / str(dtype))[1].loss
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert 1e-5 < abs(of_32 - of_16) / of_32 < 2e-2


@pytest.mark.parametrize("method", METHODS)
def test_after_training_the_network_in_memory_is_as_if_read_again(base: str, tmp_path: Path, method: str):
    settings = make(method)
    live, other = (make_live(base, torch.bfloat16, four_bit=settings.four_bit) for _ in range(2))
    model, _ = train(settings, live, tmp_path / "1")
    dtype = live.training_dtype if method == "full" else None
    network = live.load(model, dtype)
    assert all(parameter.grad is None for parameter in network.parameters())
    actual, expected = logits(network), logits(other.load(model, dtype))
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


# LoRA.


@dataclass(frozen=True)
class Untrained(Lora):
    """LoRA of which only the start is of interest."""

    def train(
        self, network: Any, examples: Sequence[Example], live: LiveModel, seed: int, advance: Callable[[], None]
    ) -> Training:
        return Training(0.0, 0, 0, 0, 0)


def untrained(settings: Lora) -> Untrained:
    return Untrained(**{field.name: getattr(settings, field.name) for field in fields(Lora)})


each_adapter = pytest.mark.parametrize(
    "changes", [{}, {"dora": True}, {"rslora": True}, {"dropout": 0.5}], ids=["lora", "dora", "rslora", "dropout"]
)


@each_adapter
def test_a_new_adapter_starts_as_the_function_of_m_0(base: str, tmp_path: Path, changes: dict[str, Any]):
    live = make_live(base)
    model, _ = train(untrained(make("lora", **changes)), live, tmp_path / "1")
    assert isinstance(live.load(model), PeftModel)
    torch.testing.assert_close(logits(live.load(model)), logits(read(base)), rtol=0.0, atol=1e-10)


@each_adapter
def test_an_evolving_start_goes_on_from_the_adapter(base: str, tmp_path: Path, changes: dict[str, Any]):
    live = make_live(base)
    m_1, _ = train(make("lora", **changes), live, tmp_path / "1")
    expected = logits(live.load(m_1))
    m_2, _ = train(untrained(make("lora", **changes)), live, tmp_path / "2", m_1, seed=1)
    assert_same(
        load_file(m_2.adapter / "adapter_model.safetensors"), load_file(tmp_path / "1/adapter_model.safetensors")
    )
    torch.testing.assert_close(logits(live.load(m_2)), expected, rtol=0.0, atol=1e-12)


def test_a_fixed_start_begins_a_new_adapter(base: str, tmp_path: Path):
    live = make_live(base)
    train(make("lora"), live, tmp_path / "1")
    model, _ = train(untrained(make("lora")), live, tmp_path / "2", seed=1)
    adapter = load_file(tmp_path / "2" / "adapter_model.safetensors")
    assert all(value.count_nonzero() == 0 for name, value in adapter.items() if "lora_B" in name)
    assert list(live.load(model).peft_config) == ["default"]


@each_adapter
def test_the_base_weights_never_change_and_no_adapter_is_merged(base: str, tmp_path: Path, changes: dict[str, Any]):
    live, settings = make_live(base), make("lora", **changes)
    m_1, _ = train(settings, live, tmp_path / "1")
    m_2, _ = train(settings, live, tmp_path / "2", m_1, seed=1)
    network = live.load(m_2)
    assert not any(module.merged for module in network.modules() if isinstance(module, LoraLayer))
    m_0 = weights(read(base))
    wrapped = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): w for name, w in weights(network).items()
    }
    assert_same({name: wrapped[name] for name in m_0}, m_0)
    assert (m_2.weights, m_2.adapter) == (None, tmp_path / "2")
    assert {file.name for file in (tmp_path / "2").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert differ({"": logits(network)}, {"": logits(read(base))})
    assert torch.equal(logits(live.load(M_0)), logits(read(base)))


def test_a_saved_adapter_reloads_as_it_is_in_memory(base: str, tmp_path: Path):
    live = make_live(base)
    model, _ = train(make("lora", dropout=0.5), live, tmp_path / "1")
    reloaded = PeftModel.from_pretrained(read(base), tmp_path / "1")
    torch.testing.assert_close(logits(reloaded), logits(live.load(model)), rtol=0.0, atol=1e-12)


def test_the_settings_of_an_adapter_arrive_in_its_file(base: str, tmp_path: Path):
    settings = make(
        "lora", rank=3, alpha=5.0, dropout=0.25, target_modules=["q_proj", "up_proj"], dora=True, rslora=True
    )
    train(untrained(settings), make_live(base), tmp_path / "1")
    saved = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    names = ("r", "lora_alpha", "lora_dropout", "use_dora", "use_rslora", "task_type")
    assert [saved[name] for name in names] == [3, 5.0, 0.25, True, True, "CAUSAL_LM"]
    assert sorted(saved["target_modules"]) == ["q_proj", "up_proj"]


@pytest.mark.parametrize("switch", ["dora", "rslora"])
def test_dora_and_rslora_are_off_unless_asked_for(base: str, tmp_path: Path, switch: str):
    train(untrained(make("lora", **{switch: True})), make_live(base), tmp_path / "1")
    saved = json.loads((tmp_path / "1" / "adapter_config.json").read_text())
    assert {name for name in ("dora", "rslora") if saved[f"use_{name}"]} == {switch}


def test_all_linear_adapts_every_projection_but_the_output_layer(base: str, tmp_path: Path):
    live = make_live(base)
    model, _ = train(untrained(make("lora")), live, tmp_path / "1")
    adapted = {
        name.split(".")[-1] for name, module in live.load(model).named_modules() if isinstance(module, LoraLayer)
    }
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("target_modules", [["nope"], ["q_proj", "v_prj"], ["mlp"]])
def test_target_modules_that_cannot_be_adapted_are_named(base: str, tmp_path: Path, target_modules: list[str]):
    with pytest.raises(ValueError, match=r"finetune\.target_modules=\[.*" + target_modules[-1]):
        train(make("lora", target_modules=target_modules), make_live(base), tmp_path / "1")


# QLoRA.


def test_m_0_of_qlora_is_the_model_in_nf4_in_sampling_too(base: str):
    from bitsandbytes.nn import Linear4bit

    network = make_live(base, torch.float32, four_bit=True).load(M_0)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, Linear4bit)}
    assert len(layers) == 2 * 7  # layers of the tiny model, each with the projections of attention and MLP
    assert {layer.weight.quant_type for layer in layers.values()} == {"nf4"}
    assert {layer.weight.quant_state.nested for layer in layers.values()} == {True}
    error = (logits(network).double() - logits(read(base))).abs().mean()
    assert 1e-3 < error < logits(read(base)).std(), "near M_0, and not M_0"


def test_a_new_adapter_on_4_bits_starts_as_the_4_bit_m_0(base: str, tmp_path: Path):
    live = make_live(base, torch.float32, four_bit=True)
    expected = logits(live.load(M_0))
    model, _ = train(untrained(make("qlora")), live, tmp_path / "1")
    torch.testing.assert_close(logits(live.load(model)), expected, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlora_trains_the_adapter_and_leaves_the_4_bit_weights(base: str, tmp_path: Path, dtype: torch.dtype):
    live = make_live(base, dtype, four_bit=True)
    before = weights(live.load(M_0))
    first, _ = train(make("qlora", batch_size=6, learning_rate=0.2), live, tmp_path / "1")
    _, training = train(make("qlora", batch_size=6), live, tmp_path / "2", first)
    _, untouched = train(make("qlora", batch_size=6, learning_rate=1e-9), live, tmp_path / "3")
    assert training.loss < untouched.loss
    assert_same(weights(live.load(M_0)), before)
    adapter = load_file(tmp_path / "2" / "adapter_model.safetensors")
    assert {value.dtype for value in adapter.values()} == {torch.float32}


def test_sampling_from_a_4_bit_model_leaves_its_training_as_it_was(base: str, tmp_path: Path):
    adapters = []
    for sampled in (False, True):
        live = make_live(base, torch.float32, four_bit=True)
        if sampled:
            logits(live.load(M_0))
        train(make("qlora"), live, tmp_path / str(sampled))
        adapters.append(load_file(tmp_path / str(sampled) / "adapter_model.safetensors"))
    assert_same(*adapters)


def test_4_bits_of_float64_are_refused_before_any_model_is_read():
    with pytest.raises(ValueError, match=r"model\.dtype=float64 cannot be held in 4 bits"):
        make_live("no such model", torch.float64, four_bit=True)


# Settings.


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -1e-5),
        ("learning_rate", math.nan),
        ("epochs", 0),
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("micro_batch_size", 3),
        ("micro_batch_size", 8),
        ("optimizer", "adam"),
        ("schedule", "lineal"),
        ("warmup_ratio", 1.0),
        ("warmup_ratio", -0.1),
        ("weight_decay", -0.1),
        ("max_grad_norm", -1.0),
        ("on_nonfinite", "skip"),
        ("max_skipped_steps", -1),
        ("rank", 0),
        ("alpha", 0.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("target_modules", []),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name: str, value: object):
    with pytest.raises(ValueError, match=rf"finetune\.{name}={value}: expected".replace("[]", r"\[\]")):
        make("lora", **{name: value})
    if name in {field.name for field in fields(Optimization)}:
        with pytest.raises(ValueError, match=rf"finetune\.{name}="):
            make("full", **{name: value})


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 1, "batch_size": 1, "micro_batch_size": 1},
        {"batch_size": 6, "micro_batch_size": 3},
        {"warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0, "max_skipped_steps": 0},
        {"rank": 1, "dropout": 0.0, "target_modules": ["q_proj"]},
    ],
)
def test_settings_at_the_edge_of_their_range_are_taken(changes: dict[str, Any]):
    assert all(getattr(make("lora", **changes), name) == value for name, value in changes.items())


# CUDA.


@pytest.mark.gpu
def test_on_cuda_in_bfloat16_weights_are_trained_in_float32_on_that_device(base: str, tmp_path: Path):
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    live = LiveModel(base, None, device, torch.bfloat16, four_bit=False)
    seen: set[tuple[torch.device, torch.dtype]] = set()

    def look() -> None:
        network = live.load(M_0, live.training_dtype)
        seen.update((parameter.device, parameter.dtype) for parameter in network.parameters())

    model, training = train(
        make("full", optimizer="adamw_torch", learning_rate=1e-5), live, tmp_path / "1", advance=look
    )

    assert seen == {(device, torch.float32)}
    assert math.isfinite(training.loss) and training.steps == 2
    saved = load_file(tmp_path / "1" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    sampled = live.load(model)
    assert (sampled.device, sampled.dtype) == (device, torch.bfloat16)
    assert sampled.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora"])
def test_in_float16_a_training_outlives_the_overflows_of_its_scaling(base: str, tmp_path: Path, method: str):
    live = LiveModel(base, None, torch.device("cuda", 0), torch.float16, four_bit=False)
    settings = make(method, optimizer="adamw_torch", learning_rate=1e-5, epochs=20, batch_size=6)
    model, training = train(settings, live, tmp_path / "1")
    assert math.isfinite(training.loss) and training.steps + training.skipped == 20
    assert training.steps >= 4  # halved 16 times, the scale is 1
    assert all(torch.isfinite(value).all() for value in weights(live.load(model)).values())
