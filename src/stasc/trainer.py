"""One fine-tuning, by the Trainer of `transformers`. Ours are the loss, the one device, and being told of each step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stasc.finetune import Example, Optimization, Training, collate, loss_sum
from stasc.records import Advance

if TYPE_CHECKING:
    from stasc.model import LiveModel, Network


def train(
    network: Network,
    examples: Sequence[Example],
    settings: Optimization,
    live: LiveModel,
    seed: int,
    advance: Advance,
) -> Training:
    """Trains `network` in place."""
    with tempfile.TemporaryDirectory() as scratch:
        trainer = CompletionTrainer(
            settings,
            model=network,
            args=_arguments(settings, live, seed, scratch, network),
            train_dataset=list(examples),
            data_collator=collate,
            callbacks=[Told(advance)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.model_accepts_loss_kwargs = True  # so that it counts them
        output = trainer.train()
        trainer.accelerator.unwrap_model(network, keep_fp32_wrapper=False)
    if settings.gradient_checkpointing:
        network.activation_checkpointing_disable()
    tokens = settings.epochs * sum(len(example.completion) for example in examples)
    return Training(torch.stack(trainer.sums).sum().item() / tokens, output.global_step, tokens, len(examples))


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


def _arguments(settings: Optimization, live: LiveModel, seed: int, scratch: str, network: Network) -> Arguments:
    micro = settings.micro_batch_size or settings.batch_size
    return Arguments(
        run_device=str(live.device),
        output_dir=scratch,
        seed=seed,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
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


class CompletionTrainer(Trainer):
    """Trains on the mean loss per trained token of a step, over all its micro-batches."""

    def __init__(self, settings: Optimization, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = settings
        self.sums: list[Tensor] = []  # of the loss, by micro-batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        assert num_items_in_batch is not None  # the trained tokens of all micro-batches of this step
        summed = loss_sum(model, inputs)
        self.sums.append(summed.detach().double())
        loss = summed / num_items_in_batch
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: "
                f"lower finetune.learning_rate ({self.settings.learning_rate}) or set model.dtype=float32"
            )
        return loss


class Told(TrainerCallback):
    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        self.advance()
