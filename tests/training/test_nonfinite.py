"""A loss or a gradient that is not finite ends a training or is left out of it; it never reaches the weights."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuning import EXAMPLES, assert_same, logits, make, make_live, nll, read, train, weights
from test_run import experiment, run_tiny
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from stasc import tracking
from stasc.errors import NonFiniteError
from stasc.models.live import LiveModel
from stasc.models.model import M_0
from stasc.prefix_tree.batch import Batch, Example, Logprobs, logprobs
from stasc.records import OptimizerStep
from stasc.training import loop, micro_batches
from stasc.training.loop import Training


def poison(monkeypatch: pytest.MonkeyPatch, what: str, value: float, ids: str = "d") -> None:
    """Makes the loss of some examples `value` and leaves its gradient as it is, or the other way round."""

    def poisoned(network: nn.Module, batch: Batch) -> Logprobs:
        logp = logprobs(network, batch)
        if not any(example.id in ids for example in batch.examples):
            return logp
        if what == "loss":
            return replace(logp, edges_E=logp.edges_E - value)
        logp.edges_E.register_hook(lambda gradient: gradient * value)
        return logp

    monkeypatch.setattr(micro_batches, "logprobs", poisoned)


FAULTS = {
    "nan loss": ("loss", math.nan, "the loss is nan"),
    "infinite loss": ("loss", -math.inf, "the loss is -inf"),
    "nan gradient": ("gradient", math.nan, "the norm of the gradient is nan"),
    "infinite gradient": ("gradient", math.inf, "the norm of the gradient is (nan|inf)"),
}
BAD, GOOD = EXAMPLES[3], EXAMPLES[0]
each_training = pytest.mark.parametrize(
    ("max_grad_norm", "method"), list(itertools.product([0.0, 1.0], ["full", "lora"]))
)


@pytest.fixture(params=FAULTS)
def said(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is to be said of the bad example, which each fault in turn poisons."""
    what, value, said = FAULTS[request.param]
    poison(monkeypatch, what, value)
    return said


@each_training
def test_what_is_not_finite_is_stopped_before_the_step_and_nothing_is_written(
    base: str, tmp_path: Path, method: str, max_grad_norm: float, said: str
):
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


@pytest.mark.usefixtures("said")
@each_training
def test_a_skipped_step_leaves_weights_and_optimizer_as_if_it_had_not_been(
    base: str, tmp_path: Path, method: str, max_grad_norm: float
):
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


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_is_skipped_with_all_its_micro_batches_and_no_loss_of_them_is_reported(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
):
    poison(monkeypatch, what, math.nan)
    told: list[OptimizerStep] = []
    seen: list[str] = []
    backward = micro_batches.MicroBatches.backward

    def watched(self: Any, step: Sequence[Example]) -> list[micro_batches.MicroBatch]:
        seen.extend(example.id for example in step)
        return backward(self, step)

    monkeypatch.setattr(micro_batches.MicroBatches, "backward", watched)
    live = make_live(base)
    settings = make("full", batch_size=3, micro_batch_size=1, on_nonfinite="skip_step")
    _, training = train(settings, live, tmp_path / "1", on_step=told.append)

    counted = seen[:3] if "d" in seen[3:] else seen[3:]
    taken = [example for example in EXAMPLES if example.id in counted]
    tokens = sum(len(example.completion) for example in taken)
    network = read(base)  # of two steps one is skipped, so that the other one's loss is of M_0
    mean = sum(nll(network, example).item() for example in taken) / tokens
    assert training == Training(pytest.approx(mean, rel=1e-12), 1, tokens, 6, 1, training.micro_batch_tokens)
    assert len(told) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "stasc.training.loop"]
    step = 1 if "d" in seen[:3] else 2
    named = {"d"} if what == "loss" else set(seen[3 * (step - 1) : 3 * step])
    assert set(warning.partition(f" at step {step}, on ")[2].removesuffix(": skipped").split("; ")) == named


def scale_losses(monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Scales losses as training in float16 does, by torch's scaler: it halves the scale when a gradient overflows."""
    monkeypatch.setattr(loop, "GradScaler", lambda device, enabled: torch.amp.GradScaler(device, init_scale=scale))


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient_that_overflows_for_its_scale_is_left_to_the_scaler(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_grad_norm: float
):
    changes = {"optimizer": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": max_grad_norm}
    live = make_live(base)
    model, expected = train(make("full", epochs=2, **changes), live, tmp_path / "1", examples=[GOOD])
    unscaled = weights(live.load(model))

    def overflowing(network: nn.Module, batch: Batch) -> Logprobs:
        logp = logprobs(network, batch)
        logp.edges_E.register_hook(lambda gradient: gradient if (gradient * 4 >= -2).all() else gradient * math.inf)
        return logp  # each one's gradient is minus the scale by 4: what is scaled by more than 2 overflows

    monkeypatch.setattr(micro_batches, "logprobs", overflowing)
    scale_losses(monkeypatch, 16.0)
    live = make_live(base)
    model, training = train(make("full", epochs=5, **changes), live, tmp_path / "2", examples=[GOOD])
    assert training == replace(expected, skipped=3)  # those scaled by 16, 8 and 4
    assert_same(weights(live.load(model)), unscaled)


@pytest.mark.parametrize(
    ("what", "step"), [("loss", 1), ("gradient", 3)], ids=["loss, at once", "gradient, once its scale is 1"]
)
def test_what_is_not_finite_at_any_scale_is_stopped(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, step: int
):
    """A gradient may overflow for its scale, which is 4 and 2 before; a loss can't."""
    poison(monkeypatch, what, math.nan)
    scale_losses(monkeypatch, 4.0)
    with pytest.raises(NonFiniteError, match=f"{what} is nan at step {step}, on d"):
        train(make("full", epochs=5), make_live(base), tmp_path / "1", examples=[BAD])


def test_more_skipped_steps_than_allowed_abort(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, "gradient", math.nan)
    told: list[OptimizerStep] = []
    settings = make("full", batch_size=1, epochs=3, on_nonfinite="skip_step", max_skipped_steps=2)
    message = r"at step [56], on d, with 2 steps skipped before: .* or raise finetune\.max_skipped_steps$"
    with pytest.raises(NonFiniteError, match=message):
        train(settings, make_live(base), tmp_path / "1", examples=[GOOD, BAD], on_step=told.append)
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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_loss_that_is_no_number_names_the_learning_rate(base: str, tmp_path: Path, method: str):
    settings = make(method, learning_rate=1e30, batch_size=1, epochs=2)
    with pytest.raises(
        FloatingPointError,
        match=r"the loss is (nan|inf) at step \d+, on [a-f]: lower finetune\.learning_rate \(1e\+30\)",
    ):
        train(settings, make_live(base, torch.float32), tmp_path / "1")
    assert not (tmp_path / "1").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["full", "lora"])
def test_in_float16_a_training_outlives_the_overflows_of_its_scaling(base: str, tmp_path: Path, method: str):
    live = LiveModel(base, None, torch.device("cuda", 0), torch.float16, four_bit=False)
    settings = make(method, optimizer="adamw_torch", learning_rate=1e-5, epochs=20, batch_size=6)
    model, training = train(settings, live, tmp_path / "1")
    assert math.isfinite(training.loss) and training.steps + training.skipped == 20
    assert training.steps >= 4  # halved 16 times, the scale is 1
    assert all(torch.isfinite(value).all() for value in weights(live.load(model)).values())


# What a model gives, and a reward.


def broken(base: str, folder: Path) -> Path:
    """The tiny model with a weight that is no number."""
    network = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        network.get_output_embeddings().weight[7] = math.nan
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_a_model_whose_logits_are_not_finite_ends_the_run_by_its_name_and_the_questions(
    base: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = broken(base, tmp_path / "broken")
    message = (
        r"^M_0 in iteration 0, test split: the logits are not finite: countries/\w+/\w+ \('.*model\.dtype=float32$"
    )
    with pytest.raises(NonFiniteError, match=message):
        run_tiny(tmp_path / "run", "model=custom", f"model.path={model}")
    assert not caplog.records, "that it cannot share prompts is not what is wrong"
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed_nonfinite"


def test_a_fine_tuned_model_whose_logits_are_not_finite_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose last step was too large: there is no next loss to tell."""
    whole = loop.train

    def spoilt(network: nn.Module, *given: Any) -> Training:
        training = whole(network, *given)
        with torch.no_grad():
            network.get_output_embeddings().weight[7] = math.inf
        return training

    monkeypatch.setattr(loop, "train", spoilt)
    message = r"^M_1 in iteration 1, test split: the logits are not finite: .*lower finetune\.learning_rate, or"
    with pytest.raises(NonFiniteError, match=message):
        run_tiny(tmp_path / "run", "iterations=2")
    status = [event for event in tracking.read(tmp_path / "run" / "journal.jsonl") if event["event"] == "run_ended"]
    assert [event["status"] for event in status] == ["failed_nonfinite"]


def not_a_number(answer: str, references: Sequence[str]) -> float:
    return math.nan


def test_a_reward_that_is_not_finite_ends_the_run_as_such(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"^the reward gave nan for initial answer 0 to countries/"):
        run_tiny(tmp_path / "run", "~reward", "+reward={_target_: test_nonfinite.not_a_number, _partial_: true}")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed_nonfinite"


@pytest.mark.parametrize(
    "setting",
    [
        *("finetune.learning_rate", "finetune.weight_decay", "finetune.max_grad_norm", "sampling.temperature"),
        *("evaluation.temperature", "filter.margin", "correct_at"),
    ],
)
@pytest.mark.parametrize("value", ["1e999", "inf", "nan", "-inf"])
def test_a_setting_that_is_not_finite_is_refused(setting: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"^{setting}=-?(inf|nan|1e999): expected"):
        experiment(f"{setting}={value}")


def test_a_reference_that_is_not_finite_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "huge.jsonl"
    rows = [f'{{"question": "q{i}", "answer": {answer}}}' for i, answer in enumerate(["1e308", "[2, -1e999]", "3"])]
    file.write_text("\n".join(rows))
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(file))}:2: 'answer' is or holds a number that is too large"
    ):
        experiment("dataset=jsonl", f"dataset.path={file}", "dataset.n_test=1", "dataset.n_validation=0")
