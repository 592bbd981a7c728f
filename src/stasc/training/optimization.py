"""The settings of the training loop, whatever the method and the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stasc.settings.check import expect

_LEAST = {  # settings that have a minimum
    **dict.fromkeys(("epochs", "batch_size"), (1, "at least 1")),
    **dict.fromkeys(("max_steps", "steps_match", "micro_batch_size", "micro_batch_tokens"), (1, "null or at least 1")),
    **dict.fromkeys(("weight_decay", "max_skipped_steps"), (0, "at least 0")),
    "max_grad_norm": (0, "at least 0 (0: no clipping)"),
}
_KNOWN = {  # settings that name one of several options
    "optimizer": (
        *("adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit"),
        *("adafactor", "sgd"),
    ),
    "schedule": ("constant", "constant_with_warmup", "linear", "cosine"),
    "shuffle": ("examples", "prompts"),
    "truncated": ("drop", "keep"),
    "on_nonfinite": ("abort", "skip_step"),
}


@dataclass(frozen=True)
class Optimization:
    """Settings of the group `finetune` that the loop reads, named as in `transformers.TrainingArguments`."""

    learning_rate: float
    epochs: int
    batch_size: int
    max_steps: int | None
    steps_match: int | None
    micro_batch_size: int | None
    micro_batch_tokens: int | None
    packing: bool
    shuffle: str
    optimizer: str
    schedule: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    on_nonfinite: str
    max_skipped_steps: int
    truncated: str

    def __post_init__(self) -> None:
        expect("finetune.learning_rate", self.learning_rate, self.learning_rate > 0, "a number above 0")
        for name, (least, expected) in _LEAST.items():
            value = getattr(self, name)
            expect(f"finetune.{name}", value, value is None or value >= least, expected)
        for name, options in _KNOWN.items():
            value = getattr(self, name)
            expect(f"finetune.{name}", value, value in options, f"one of {', '.join(options)}")
        one = self.max_steps is None or self.steps_match is None
        expect("finetune.max_steps", self.max_steps, one, "null where finetune.steps_match says how many there are")
        expect("finetune.warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio < 1, "0 <= ratio < 1")
        warms_up = self.schedule != "constant" or not self.warmup_ratio
        expect("finetune.warmup_ratio", self.warmup_ratio, warms_up, "0, or finetune.schedule=constant_with_warmup")

    def steps(self, examples: int) -> int:
        """Returns the number of optimizer steps of a fine-tuning on so many examples."""
        if self.steps_match is not None:
            return self.steps_match
        steps = self.epochs * math.ceil(examples / self.batch_size)
        return steps if self.max_steps is None else min(steps, self.max_steps)
