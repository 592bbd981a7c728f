"""One fine-tuning, by the Trainer of `transformers`. Ours are the loss, the check of each step, and the one device."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stasc.errors import NonFiniteError
from stasc.machine.memory import ran_out
from stasc.models import lengths
from stasc.prefix_tree import costs, masks, probe
from stasc.prefix_tree.batch import Example, collate, tree
from stasc.prefix_tree.likelihood import token_losses
from stasc.prefix_tree.trie import parts
from stasc.records import Advance
from stasc.tracking import fallback
from stasc.training import gradients
from stasc.training.losses import loss_weights
from stasc.training.methods import Optimization, Training, steps

if TYPE_CHECKING:
    from stasc.models.live import LiveModel
    from stasc.models.model import Network

log = logging.getLogger(__name__)


def train(
    network: Network,
    examples: Sequence[Example],
    settings: Optimization,
    live: LiveModel,
    seed: int,
    advance: Advance,
) -> Training:
    """Trains `network` in place.

    Raises: NonFiniteError, before the step that it is about; ValueError naming an example without prompt or completion.
    """
    for example in examples:
        if not example.completion or not example.prompt:
            raise ValueError(f"{example.id}: no token to train on, its correction or its prompt is empty")
    with tempfile.TemporaryDirectory() as scratch, _without_launcher():
        trainer = CompletionTrainer(
            network,
            list(examples),
            settings,
            live.dtype,
            args=_arguments(settings, live, seed, scratch, network, steps(settings, len(examples))),
            data_collator=lambda batch: {"examples": list(batch)},
            callbacks=[Told(advance)],
        )
        trainer.remove_callback(PrinterCallback)
        on_cpu = live.device.type == "cpu"  # CUDA's own allocator keeps memory
        keeping = gradients.kept(network, trainer.gradients) if on_cpu else nullcontext()
        with keeping, masks.attending(network, trainer.mask):
            trainer.train()
        trainer.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    if settings.gradient_checkpointing:
        network.activation_checkpointing_disable()
    return trainer.result(len(examples))


@contextmanager
def _without_launcher() -> Iterator[None]:
    """What `accelerate launch` and `torchrun` set would make it another training: the settings alone decide."""
    prefixes, names = (
        ("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "PMI_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"),
        ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    )
    theirs = {name: value for name, value in os.environ.items() if name.startswith(prefixes) or name in names}
    for name in theirs:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(theirs)


@dataclass
class Arguments(TrainingArguments):
    """The run's device alone, where the Trainer would spread over all that it sees."""

    run_device: str = "cpu"

    @cached_property
    def _setup_devices(self) -> torch.device:
        super()._setup_devices  # noqa: B018 - a property whose work is wanted
        device = torch.device(self.run_device)
        if device.type == "cuda":
            self._n_gpu = 1
            torch.cuda.set_device(device)
        return device


def _arguments(
    settings: Optimization, live: LiveModel, seed: int, scratch: str, network: Network, steps: int
) -> Arguments:
    return Arguments(
        run_device=str(live.device),
        output_dir=scratch,
        seed=seed,
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        activation_checkpointing=settings.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False},
        bf16=live.dtype == torch.bfloat16,
        fp16=live.dtype == torch.float16,
        use_cpu=live.device.type == "cpu",
        dataloader_pin_memory=live.device.type == "cuda",
        use_cache=getattr(network.config, "use_cache", True),  # it is written to the model's configuration
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def _mask(network: Network, dtype: torch.dtype, longest: int) -> masks.Mask | None:
    """Returns the mask for packing examples of at most `longest` tokens; None if each takes a row of its own."""
    if probe.sees_all(network, longest):
        mask, fault = probe.probe(network, dtype)
    else:
        mask, fault = None, f"some layers of this model see fewer than the {longest} tokens of an example"
    if mask is None:
        fallback.report("no packing", fault)
    return mask


class CompletionTrainer(Trainer):
    """Trains on the mean loss of a step, over all its micro-batches, where that is finite."""

    def __init__(
        self, network: Network, examples: list[Example], settings: Optimization, dtype: torch.dtype, **kwargs: Any
    ) -> None:
        super().__init__(model=network, train_dataset=examples, **kwargs)
        self.settings = settings
        self.sums: list[Tensor] = []  # of the loss, by micro-batch of the steps that were taken
        self.steps = self.tokens = 0  # of these
        self.skipped = self.overflows = 0  # the others: by our own policy, and by the scaling that float16 needs
        self.gradients: gradients.Kept = {}
        self.most_tokens = settings.micro_batch_tokens or costs.worthwhile(network)
        longest = max(len(example.prompt) + len(example.completion) for example in examples)
        self.mask = _mask(network, dtype, longest) if settings.packing else None
        apart = self.mask is None and not probe.pads(network)
        self.lengths = lengths.Lengths(lengths.switches(network), apart)
        self._micro_batches: list[tuple[Tensor, Sequence[Example]]] = []  # of the step at hand, with their summed loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        examples = cast("list[Example]", self.train_dataset)
        if self.settings.shuffle == "prompts":
            shuffled = Shuffled([example.prompt for example in examples], self.args.seed)
        elif self.settings.steps_match is None:
            return super()._get_train_sampler(train_dataset)
        else:
            shuffled = Shuffled(range(len(examples)), self.args.seed)
        if self.settings.steps_match is None:
            return shuffled
        return Cycled(shuffled, self.settings.steps_match * self.settings.batch_size)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: object = None) -> Tensor:
        """Adds up the gradient of a step, micro-batch by micro-batch; in smaller ones if memory does not suffice."""
        model.train()
        examples = inputs["examples"]
        while True:
            try:
                return self._accumulate(model, examples)
            except RuntimeError as error:
                if not ran_out(error) or self.most_tokens <= max(len(example.prompt) for example in examples):
                    raise
            self.most_tokens //= 2  # here, where the error no longer holds what it was computing
            log.warning("out of memory: fine-tuning goes on with %d tokens at once", self.most_tokens)
            fallback.report("smaller micro-batches", f"out of memory with {2 * self.most_tokens} tokens at once")
            self._micro_batches.clear()
            model.zero_grad()
            self.gradients.clear()

    def _accumulate(self, model: nn.Module, examples: Sequence[Example]) -> Tensor:
        weights = loss_weights(examples, self.settings.loss_per)
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        whole = [example.prompt + example.completion[:-1] for example in examples]
        for part in self._parts(whole):
            some, weigh = [examples[index] for index in part], [weights[index] for index in part]
            device = self.args.device
            batch = tree(some, weigh, self.mask, device) if self.mask else collate(some, weigh)
            batch = batch.to(device)
            with self.compute_loss_context_manager():
                losses = token_losses(model, batch)
                loss = (losses * batch.weights.to(losses.dtype)).sum()
            self.accelerator.backward(loss)
            self._micro_batches.append(((losses.detach().double() * batch.counts).sum(), some))
            total += loss.detach()
        return total

    def _parts(self, whole: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """The examples of each micro-batch, as indices."""
        for group in self.lengths.groups(map(len, whole)):
            for part in parts([whole[i] for i in group], self.most_tokens, self.settings.micro_batch_size):
                yield [group[index] for index in part]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm before clipping. It is asked for once a step, right before the optimizer's turn."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        micro_batches, self._micro_batches = self._micro_batches, []
        if self._may_step(micro_batches, float(norm)):
            self.steps += 1
            self.sums += [summed for summed, _ in micro_batches]
            self.tokens += sum(len(example.completion) for _, examples in micro_batches for example in examples)
        else:
            model.zero_grad()  # an optimizer leaves alone what has no gradient
        return norm

    def _may_step(self, micro_batches: Sequence[tuple[Tensor, Sequence[Example]]], norm: float) -> bool:
        """Whether loss and gradient are finite. A norm that overflows is not: Adam squares gradients as well.

        Raises: NonFiniteError if they are not, and such a step is not to be skipped.
        """
        losses = torch.stack([summed for summed, _ in micro_batches]).tolist()
        if all(map(math.isfinite, (*losses, norm))):
            return True
        wrong = [(loss, row) for loss, (_, row) in zip(losses, micro_batches, strict=True) if not math.isfinite(loss)]
        scaler = self.accelerator.scaler
        if not wrong and scaler is not None and scaler.get_scale() > 1:
            self.overflows += 1  # the scaler's own business: it skips the step, and tries a smaller scale
            return False
        what = f"the loss is {wrong[0][0]}" if wrong else f"the norm of the gradient is {norm}"
        rows = [row for _, row in wrong] or [row for _, row in micro_batches]
        ids = "; ".join(example.id for row in rows for example in row)
        self._skip(f"{what} at step {self.state.global_step + 1}, on {ids}")
        return False

    def _skip(self, fault: str) -> None:
        bound = self.settings.max_skipped_steps
        if self.settings.on_nonfinite == "abort":
            raise NonFiniteError(
                f"{fault}: {self._advice()}, or leave such steps out with finetune.on_nonfinite=skip_step"
            )
        if self.skipped == bound:
            raise NonFiniteError(
                f"{fault}, with {bound} steps skipped before: {self._advice()}, or raise finetune.max_skipped_steps"
            )
        self.skipped += 1
        log.warning("%s: skipped", fault)

    def _advice(self) -> str:
        return f"lower finetune.learning_rate ({self.settings.learning_rate}) or set model.dtype=float32"

    def result(self, examples: int) -> Training:
        """What this training did. Raises: NonFiniteError if all its steps were skipped."""
        skipped = self.skipped + self.overflows
        assert self.steps + skipped == self.state.global_step  # each was looked at
        if not self.steps:
            raise NonFiniteError(f"none of {skipped} steps had a finite loss and gradient: {self._advice()}")
        loss = torch.stack(self.sums).sum().item() / self.tokens
        return Training(loss, self.steps, self.tokens, examples, skipped, self.most_tokens)


class Shuffled(Sampler[int]):
    """Another order each epoch, in which equal things stand together: batches then have much in common."""

    def __init__(self, things: Sequence[Hashable], seed: int) -> None:
        groups: dict[Hashable, list[int]] = {}
        for index, thing in enumerate(things):
            groups.setdefault(thing, []).append(index)
        self._groups, self._generator = list(groups.values()), torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def __iter__(self) -> Iterator[int]:
        for group in torch.randperm(len(self._groups), generator=self._generator).tolist():
            yield from self._groups[group]


class Cycled(Sampler[int]):
    """The first `count` of one epoch after the other, so that every step has as many examples as any other."""

    def __init__(self, epoch: Sampler[int], count: int) -> None:
        self._epoch, self._count = epoch, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        return islice(chain.from_iterable(repeat(self._epoch)), self._count)


class Told(TrainerCallback):
    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.advance()
