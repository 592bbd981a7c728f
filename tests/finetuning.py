"""A model of 2 layers with random weights, examples to train it on, and its loss worked out token by token.

In float64, so that what has to agree agrees to the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from stasc.models.live import LiveModel
from stasc.models.model import M_0, Model
from stasc.prefix_tree.batch import Example
from stasc.records import OptimizerStep
from stasc.training.loop import Training, finetune
from stasc.training.losses import NLL, Loss
from stasc.training.methods import Full, Lora, Method, QLora

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


def make(method: str, **changes: Any) -> Full | Lora:
    """A method with plain settings, of which the test sets what it is about."""
    kind = {"full": Full, "lora": Lora, "qlora": QLora}[method]
    settings = {
        "learning_rate": 0.05,
        "epochs": 1,
        "batch_size": 4,
        "max_steps": None,
        "steps_match": None,
        "micro_batch_size": None,
        "micro_batch_tokens": None,
        "packing": True,
        "shuffle": "examples",
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "gradient_checkpointing": False,
        "on_nonfinite": "abort",
        "max_skipped_steps": 10,
        "truncated": "keep",
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


def nothing(step: OptimizerStep) -> None:
    pass


def train(
    settings: Method,
    live: LiveModel,
    folder: Path,
    start: Model = M_0,
    examples: Sequence[Example] = EXAMPLES,
    seed: int = 0,
    on_step: Callable[[OptimizerStep], None] = nothing,
    per: str = "token",
    loss: Loss | None = None,
) -> tuple[Model, Training]:
    return finetune(settings, loss or NLL(per), live, start, examples, folder, seed, on_step)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], atol: float = 0.0) -> None:
    torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)
