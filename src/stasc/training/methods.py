"""How is a model fine-tuned on the corrections that were kept? Full weights, LoRA, or LoRA on a 4-bit base.

The loss is the negative log-likelihood of y2 given (x, y1), per trained token; prompts carry none. Trainer of
`transformers` and `peft` do the work; ours are batches that compute nothing twice, and only the logits that are needed.

Shapes: B rows, T tokens, K positions with logits, E trained tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from stasc.machine import durable
from stasc.models.live import LiveModel
from stasc.models.model import Model
from stasc.prefix_tree.batch import Example
from stasc.records import Advance
from stasc.settings.check import expect

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from stasc.models.model import Network

_OPTIMIZERS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "adafactor",
    "sgd",
)
_ON_NONFINITE = ("abort", "skip_step")
_LOSS_PER = ("token", "example")
_SHUFFLE = ("examples", "prompts")
_TRUNCATED = ("drop", "keep")
_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")


@dataclass(frozen=True)
class Training:
    """What a fine-tuning did: mean loss per trained token, optimizer steps, trained tokens, examples.

    `micro_batch_tokens` is how many tokens it computed at once, at most: fewer than it began with after it ran out of
    memory. Neither loss nor steps nor tokens count what was `skipped`: steps whose loss or gradient was not finite.
    """

    loss: float
    steps: int
    tokens: int
    examples: int
    skipped: int
    micro_batch_tokens: int


@dataclass(frozen=True)
class Optimization:
    """The settings that all methods share, by their names in the paper and in `transformers.TrainingArguments`."""

    suffix: str
    learning_rate: float
    epochs: int
    batch_size: int
    max_steps: int | None
    steps_match: int | None
    micro_batch_size: int | None
    micro_batch_tokens: int | None
    packing: bool
    loss_per: str
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

    four_bit: ClassVar[bool] = False

    @property
    def needs_bitsandbytes(self) -> bool:
        return self.four_bit or self.optimizer.endswith("8bit") or self.optimizer.startswith("paged")

    def __post_init__(self) -> None:
        expect("finetune.learning_rate", self.learning_rate, self.learning_rate > 0, "a number above 0")
        expect("finetune.epochs", self.epochs, self.epochs >= 1, "at least 1")
        expect("finetune.batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        for name, limit in (("max_steps", self.max_steps), ("steps_match", self.steps_match)):
            expect(f"finetune.{name}", limit, limit is None or limit >= 1, "null or at least 1")
        one = self.max_steps is None or self.steps_match is None
        expect("finetune.max_steps", self.max_steps, one, "null where finetune.steps_match says how many there are")
        some = self.micro_batch_size is None or self.micro_batch_size >= 1
        expect("finetune.micro_batch_size", self.micro_batch_size, some, "null or at least 1")
        enough = self.micro_batch_tokens is None or self.micro_batch_tokens >= 1
        expect("finetune.micro_batch_tokens", self.micro_batch_tokens, enough, "null or at least 1")
        expect("finetune.loss_per", self.loss_per, self.loss_per in _LOSS_PER, f"one of {', '.join(_LOSS_PER)}")
        expect("finetune.shuffle", self.shuffle, self.shuffle in _SHUFFLE, f"one of {', '.join(_SHUFFLE)}")
        expect("finetune.optimizer", self.optimizer, self.optimizer in _OPTIMIZERS, f"one of {', '.join(_OPTIMIZERS)}")
        expect("finetune.schedule", self.schedule, self.schedule in _SCHEDULES, f"one of {', '.join(_SCHEDULES)}")
        expect("finetune.warmup_ratio", self.warmup_ratio, 0 <= self.warmup_ratio < 1, "0 <= ratio < 1")
        warms_up = self.schedule != "constant" or not self.warmup_ratio
        expect("finetune.warmup_ratio", self.warmup_ratio, warms_up, "0, or finetune.schedule=constant_with_warmup")
        expect("finetune.weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0")
        expect("finetune.max_grad_norm", self.max_grad_norm, self.max_grad_norm >= 0, "at least 0 (0: no clipping)")
        known = self.on_nonfinite in _ON_NONFINITE
        expect("finetune.on_nonfinite", self.on_nonfinite, known, f"one of {', '.join(_ON_NONFINITE)}")
        expect("finetune.max_skipped_steps", self.max_skipped_steps, self.max_skipped_steps >= 0, "at least 0")
        known = self.truncated in _TRUNCATED
        expect("finetune.truncated", self.truncated, known, f"one of {', '.join(_TRUNCATED)}")

    def train(
        self, network: Network, examples: Sequence[Example], live: LiveModel, seed: int, advance: Advance
    ) -> Training:
        """Trains `network` in place. Raises: NonFiniteError, by `on_nonfinite`."""
        from stasc.training import trainer

        return trainer.train(network, examples, self, live, seed, advance)


@dataclass(frozen=True)
class Full(Optimization):
    """Every weight is trained. They are held in float32 and computed with in `model.dtype`."""

    def model(self, start: Model, folder: Path, key: str = "") -> Model:
        """What fine-tuning `start` into `folder` gives."""
        return Model(weights=folder, key=key)

    def __call__(
        self,
        live: LiveModel,
        start: Model,
        examples: Sequence[Example],
        folder: Path,
        seed: int,
        advance: Advance,
    ) -> tuple[Model, Training]:
        """Fine-tunes `start` and writes the result to `folder`."""
        network = live.load(start, live.training_dtype)
        training = self.train(network, examples, live, seed, advance)
        with durable.naming(folder):
            network.save_pretrained(str(folder))
        model = self.model(start, folder)
        live.adopt(model, network, live.training_dtype)
        return model, training


@dataclass(frozen=True)
class Lora(Optimization):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on the base weights, never merged during a run.

    From a model without an adapter a new one begins; from one with an adapter, that adapter is trained on.
    """

    rank: int
    alpha: float
    dropout: float
    target_modules: list[str]
    dora: bool
    rslora: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        expect("finetune.rank", self.rank, self.rank >= 1, "at least 1")
        expect("finetune.alpha", self.alpha, self.alpha > 0, "above 0")
        expect("finetune.dropout", self.dropout, 0 <= self.dropout < 1, "0 <= dropout < 1")
        named = bool(self.target_modules)
        expect("finetune.target_modules", self.target_modules, named, "[all-linear] or names of modules")

    def __call__(
        self,
        live: LiveModel,
        start: Model,
        examples: Sequence[Example],
        folder: Path,
        seed: int,
        advance: Advance,
    ) -> tuple[Model, Training]:
        """Fine-tunes an adapter of `start` and writes it to `folder`."""
        network = live.load(start)
        if start.adapter is None:
            network = self._with_new_adapter(network, seed)
        training = self.train(network, examples, live, seed, advance)
        with durable.naming(folder):
            network.save_pretrained(str(folder))
            _forget_place(folder)
        model = self.model(start, folder)
        live.adopt(model, network, live.dtype)
        return model, training

    def model(self, start: Model, folder: Path, key: str = "") -> Model:
        """What fine-tuning an adapter of `start` into `folder` gives."""
        return Model(weights=start.weights, adapter=folder, key=key)

    def _with_new_adapter(self, network: Network, seed: int) -> Network:
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        self._check_target_modules(network)
        set_seed(seed)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a float does as well
            lora_dropout=self.dropout,
            target_modules="all-linear" if self.target_modules == ["all-linear"] else self.target_modules,
            use_dora=self.dora,
            use_rslora=self.rslora,
            task_type="CAUSAL_LM",
        )
        try:
            return cast("PeftModel", get_peft_model(cast("PreTrainedModel", network), config))
        except ValueError as error:
            raise ValueError(f"finetune.target_modules={self.target_modules}: {error}") from error

    def _check_target_modules(self, network: Network) -> None:
        """peft is content if one of the names exists."""
        from torch import nn

        known = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        names = [name for name, _ in network.named_modules()]
        for target in [] if self.target_modules == ["all-linear"] else self.target_modules:
            if not any(f".{name}".endswith(f".{target}") for name in names):
                raise ValueError(
                    f"finetune.target_modules={self.target_modules}: this model has no module {target}; "
                    f"expected [all-linear] or some of {', '.join(sorted(known))}"
                )


def _forget_place(folder: Path) -> None:
    """Takes out of an adapter's files where its base stands on this machine: other runs may share the adapter.

    Names of modules come from a set, in another order in each process.
    """
    (folder / "README.md").unlink(missing_ok=True)  # peft's form of a model card, which has that path as well
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_bytes()) | {"base_model_name_or_path": None, "revision": None}
    if isinstance(settings["target_modules"], list):
        settings["target_modules"].sort()
    file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")


@dataclass(frozen=True)
class QLora(Lora):
    """LoRA on base weights in NF4 (Dettmers et al., arXiv 2305.14314). M_0 is the 4-bit model, in sampling too."""

    four_bit: ClassVar[bool] = True


def steps(settings: Optimization, examples: int) -> int:
    """Optimizer steps of a fine-tuning on so many examples."""
    if settings.steps_match is not None:
        return settings.steps_match
    steps = settings.epochs * math.ceil(examples / settings.batch_size)
    return steps if settings.max_steps is None else min(steps, settings.max_steps)
