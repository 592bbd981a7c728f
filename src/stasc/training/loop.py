"""Fine-tuning, step 4 of Algorithm 1: optimizer steps on the kept pairs, in mixed precision, on one device."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from transformers import Adafactor, get_scheduler, set_seed
from transformers.trainer_pt_utils import get_parameter_names

from stasc.errors import NonFiniteError
from stasc.machine import durable
from stasc.models.lengths import grouped
from stasc.models.live import LiveModel
from stasc.models.model import Model, Network
from stasc.prefix_tree.batch import Example
from stasc.records import OptimizerStep
from stasc.training.losses import Loss
from stasc.training.methods import Method
from stasc.training.micro_batches import MicroBatch, MicroBatches
from stasc.training.optimization import Optimization

log = logging.getLogger(__name__)

_WITHOUT_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # parameter names


@dataclass(frozen=True)
class Training:
    """The figures of one fine-tuning: mean negative log-likelihood per trained token, steps, trained tokens, examples.

    `micro_batch_tokens` is the bound on tokens per micro-batch at the end: lower than at the start after running out of
    memory. `loss`, `steps` and `tokens` leave out `skipped` steps, whose loss or gradient was not finite.
    """

    loss: float
    steps: int
    tokens: int
    examples: int
    skipped: int
    micro_batch_tokens: int


def finetune(
    method: Method,
    loss: Loss,
    live: LiveModel,
    start: Model,
    examples: Sequence[Example],
    folder: Path,
    seed: int,
    on_step: Callable[[OptimizerStep], None],
) -> tuple[Model, Training]:
    """Returns M_n: `start` trained on some examples and written to `folder`. The trained network stays in memory."""
    network = method.network(live, start, seed)
    training = train(network, examples, method, loss, live, seed, on_step)
    with durable.naming(folder):
        method.save(network, folder)
    model = method.model(start, folder)
    live.adopt(model, network, live.dtype if method.adapter else live.training_dtype)
    return model, training


def train(
    network: Network,
    examples: Sequence[Example],
    settings: Optimization,
    loss: Loss,
    live: LiveModel,
    seed: int,
    on_step: Callable[[OptimizerStep], None],
) -> Training:
    """Trains `network` in place. Calls `on_step` after each optimizer step, skipped ones included.

    Raises: NonFiniteError before a step whose loss or gradient is not finite, by `finetune.on_nonfinite`; ValueError
    naming an example without prompt or completion.
    """
    for example in examples:
        if not example.completion or not example.prompt:
            raise ValueError(f"{example.id}: no token to train on, its correction or its prompt is empty")
    set_seed(seed)
    scaler = GradScaler(live.device.type, enabled=live.dtype == torch.float16)
    micro_batches = MicroBatches(network, loss, settings, live, examples, scaler)
    optimizer, number = _optimizer(network, settings), settings.steps(len(examples))
    scheduler = get_scheduler(settings.schedule, optimizer, math.ceil(number * settings.warmup_ratio), number)
    tally = _Tally(settings, len(examples))
    network.train()
    network.zero_grad()
    with micro_batches.running(), _checkpointing(network, settings.gradient_checkpointing):
        for step, batch in enumerate(islice(_batches(examples, settings, seed), number), start=1):
            computed = micro_batches.backward(batch)
            scaler.unscale_(optimizer)
            norm = clip_grad_norm_(list(network.parameters()), settings.max_grad_norm or math.inf)
            scale, learning_rate = scaler.get_scale(), optimizer.param_groups[0]["lr"]
            if not tally.may_step(step, computed, float(norm), scale):
                network.zero_grad()  # optimizers leave a weight without a gradient as it is
            scaler.step(optimizer)
            scaler.update()
            if scaler.get_scale() >= scale:  # else the scaler left out the step
                scheduler.step()
            network.zero_grad()
            on_step(tally.figures(computed, float(norm), learning_rate))
    optimizer.state.clear()  # the scheduler makes the optimizer part of a reference cycle, which outlives this function
    return tally.result(micro_batches.most_tokens)


def _optimizer(network: nn.Module, settings: Optimization) -> optim.Optimizer:
    """Returns an optimizer of a network's trainable parameters, set up as `Trainer` of transformers does.

    Biases and norms get no weight decay.
    """
    decayed = set(get_parameter_names(network, [nn.LayerNorm], _WITHOUT_DECAY))
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    name, lr = settings.optimizer, settings.learning_rate
    if name.startswith("adamw_torch"):
        return optim.AdamW(groups, lr=lr, fused=name.endswith("fused") or None)
    if name == "adafactor":
        return Adafactor(groups, lr=lr, scale_parameter=False, relative_step=False)
    if name == "sgd":
        return optim.SGD(groups, lr=lr)
    return _bitsandbytes(network, groups, name, lr)


def _bitsandbytes(network: nn.Module, groups: list[dict[str, Any]], name: str, lr: float) -> optim.Optimizer:
    from bitsandbytes.optim.adamw import AdamW
    from bitsandbytes.optim.optimizer import GlobalOptimManager

    manager = GlobalOptimManager.get_instance()
    manager.initialize()  # without the overrides of earlier fine-tunings, which it keeps by position of the parameter
    for module in network.modules():
        if isinstance(module, nn.Embedding):  # its optimizer states are unstable in 8 bits
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    bits = 8 if name.endswith("8bit") else 32
    optimizer: optim.Optimizer = AdamW(groups, lr=lr, optim_bits=bits, is_paged=name.startswith("paged"))
    return optimizer


def _batches(examples: Sequence[Example], settings: Optimization, seed: int) -> Iterator[list[Example]]:
    """Yields the examples of each optimizer step, without end.

    The last batch of an epoch may be smaller. With `steps_match`, batches run on across epochs, and all are full.
    """
    epochs = _epochs(examples, settings, seed)
    for epoch in epochs if settings.steps_match is None else [chain.from_iterable(epochs)]:
        # torch's DataLoader draws a number at the start of each epoch. Models trained with one, by `Trainer` of
        # transformers, have their dropout from the generator's state after it.
        torch.empty((), dtype=torch.int64).random_()
        while batch := [examples[index] for index in islice(epoch, settings.batch_size)]:
            yield batch


def _epochs(examples: Sequence[Example], settings: Optimization, seed: int) -> Iterator[Iterator[int]]:
    """Yields permutations of the examples without end; those of one prompt stay together with `shuffle=prompts`."""
    generator = torch.Generator().manual_seed(seed)
    prompts = settings.shuffle == "prompts"
    groups = grouped([example.prompt for example in examples] if prompts else range(len(examples)))
    for epoch in count():
        if not prompts and settings.steps_match is None:
            generator.manual_seed(seed + epoch)  # as `Trainer` of transformers does
        permutation = torch.randperm(len(groups), generator=generator).tolist()
        yield chain.from_iterable(groups[group] for group in permutation)


@contextmanager
def _checkpointing(network: Network, wanted: bool) -> Iterator[None]:
    """Recomputes activations in backward passes, if wanted."""
    newer = hasattr(network, "activation_checkpointing_enable")  # its name after transformers 5.21
    name = "activation_checkpointing" if newer else "gradient_checkpointing"
    if wanted:
        getattr(network, f"{name}_enable")()
    try:
        yield
    finally:
        if wanted:
            getattr(network, f"{name}_disable")()


@dataclass
class _Tally:
    """Counts the steps that were taken, and decides on those whose loss or gradient is not finite."""

    settings: Optimization
    examples: int  # in one epoch
    nll: list[Tensor] = field(default_factory=list)  # one per micro-batch of the steps that were taken
    steps: int = 0
    tokens: int = 0
    skipped: int = 0  # by `on_nonfinite`
    overflows: int = 0  # skipped by the gradient scaler that float16 needs
    seen: int = 0  # examples of all steps
    since: float = field(default_factory=time.perf_counter)  # the end of the last step

    def may_step(self, step: int, computed: Sequence[MicroBatch], norm: float, scale: float) -> bool:
        """Checks that loss and gradient are finite. A norm that overflows is not: Adam squares gradients as well.

        Raises: NonFiniteError if they are not, and the step must not be skipped.
        """
        losses = torch.stack([part.nll for part in computed]).tolist()
        if all(map(math.isfinite, (*losses, norm))):
            self.nll += [part.nll for part in computed]
            self.steps += 1
            self.tokens += sum(len(example.completion) for part in computed for example in part.examples)
            return True
        wrong = [(loss, part) for loss, part in zip(losses, computed, strict=True) if not math.isfinite(loss)]
        if not wrong and scale > 1:
            self.overflows += 1  # the scaler skips the step, and tries a smaller scale
            return False
        what = f"the loss is {wrong[0][0]}" if wrong else f"the norm of the gradient is {norm}"
        ids = "; ".join(example.id for part in ([part for _, part in wrong] or computed) for example in part.examples)
        self._skip(f"{what} at step {step}, on {ids}")
        return False

    def figures(self, computed: Sequence[MicroBatch], norm: float, learning_rate: float) -> OptimizerStep:
        """Returns the figures of the step that has just ended."""
        examples = [example for part in computed for example in part.examples]
        tokens = sum(len(example.completion) for example in examples)
        loss = torch.stack([part.nll for part in computed]).sum().item() / tokens
        self.seen += len(examples)
        began, self.since = self.since, time.perf_counter()
        return OptimizerStep(
            loss=loss if math.isfinite(loss) else None,
            learning_rate=learning_rate,
            grad_norm=norm if math.isfinite(norm) else None,
            tokens=tokens,
            input_tokens=tokens + sum(len(example.prompt) for example in examples),
            epoch=self.seen / self.examples,
            seconds=self.since - began,
        )

    def _skip(self, fault: str) -> None:
        bound, way = self.settings.max_skipped_steps, ""
        if self.settings.on_nonfinite == "abort":
            way = "leave such steps out with finetune.on_nonfinite=skip_step"
        elif self.skipped == bound:
            fault, way = f"{fault}, with {bound} steps skipped before", "raise finetune.max_skipped_steps"
        if way:
            raise NonFiniteError(f"{fault}: {self._advice()}, or {way}")
        self.skipped += 1
        log.warning("%s: skipped", fault)

    def _advice(self) -> str:
        return f"lower finetune.learning_rate ({self.settings.learning_rate}) or set model.dtype=float32"

    def result(self, micro_batch_tokens: int) -> Training:
        """Returns what the training did. Raises: NonFiniteError if all its steps were skipped."""
        skipped = self.skipped + self.overflows
        if not self.steps:
            raise NonFiniteError(f"none of {skipped} steps had a finite loss and gradient: {self._advice()}")
        loss = torch.stack(self.nll).sum().item() / self.tokens
        return Training(loss, self.steps, self.tokens, self.examples, skipped, micro_batch_tokens)
