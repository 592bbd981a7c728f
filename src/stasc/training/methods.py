"""Methods of fine-tuning: what is trained and saved. Full weights, LoRA, or LoRA on a 4-bit base.

A method of your own is a frozen dataclass derived from `Method`, and a YAML file in `conf/finetune/` that names it.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from stasc.models.model import Model, Network
from stasc.settings.check import expect
from stasc.training.optimization import Optimization

if TYPE_CHECKING:  # torch is not imported before all settings are checked
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from stasc.models.live import LiveModel


@dataclass(frozen=True)
class Method(Optimization, ABC):
    """Chooses what of a model is trained and saved. YAML gives it together with the settings of its optimization.

    `four_bit`: base weights are held in NF4. `adapter`: base weights are frozen.
    """

    four_bit: ClassVar[bool] = False
    adapter: ClassVar[bool] = False

    @property
    def needs_bitsandbytes(self) -> bool:
        """Whether weights or optimizer states are quantised."""
        return self.four_bit or self.optimizer.endswith("8bit") or self.optimizer.startswith("paged")

    @abstractmethod
    def network(self, live: LiveModel, start: Model, seed: int) -> Network:
        """Returns the network of `start`, ready to train: all parameters that require gradients are trained."""

    @abstractmethod
    def model(self, start: Model, folder: Path) -> Model:
        """Names the model that fine-tuning `start` into `folder` gives."""

    def save(self, network: Network, folder: Path) -> None:
        """Writes a trained network to `folder`."""
        network.save_pretrained(str(folder))

    def saved_bytes(self, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> int:
        """Estimates the size of what `save` writes, from the shapes of the base's tensors and the dtype of training."""
        return sum(dtype.itemsize * math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class Full(Method):
    """Fine-tuning of every weight, held in float32 and computed with in `model.dtype`."""

    def network(self, live: LiveModel, start: Model, seed: int) -> Network:
        return live.load(start, live.training_dtype)

    def model(self, start: Model, folder: Path) -> Model:
        return Model(weights=folder)


@dataclass(frozen=True)
class Lora(Method):
    """Low-rank adapters (Hu et al., arXiv 2106.09685) on the base weights, never merged during a run.

    A model without an adapter gets a new one; a model with an adapter has that adapter trained further.
    """

    adapter: ClassVar[bool] = True

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

    def network(self, live: LiveModel, start: Model, seed: int) -> Network:
        network = live.load(start)
        return network if start.adapter else self._with_new_adapter(network, seed)

    def save(self, network: Network, folder: Path) -> None:
        """Writes the adapter without the path of the base, as other runs may share the files."""
        super().save(network, folder)
        (folder / "README.md").unlink(missing_ok=True)  # peft's model card has the path as well
        file = folder / "adapter_config.json"
        settings = json.loads(file.read_bytes()) | {"base_model_name_or_path": None, "revision": None}
        if isinstance(settings["target_modules"], list):
            settings["target_modules"].sort()  # peft takes them from a set, in another order in each process
        file.write_text(json.dumps(settings, indent=2, sort_keys=True), encoding="utf-8")

    def model(self, start: Model, folder: Path) -> Model:
        return Model(weights=start.weights, adapter=folder)

    def saved_bytes(self, shapes: Mapping[str, Sequence[int]], dtype: torch.dtype) -> int:
        return sum(4 * self.rank * sum(shape) for name, shape in shapes.items() if self._adapts(name, shape))

    def _adapts(self, name: str, shape: Sequence[int]) -> bool:
        """Checks whether a tensor gets an adapter. peft's all-linear excludes embeddings and the output matrix."""
        module = name.removesuffix(".weight")
        if self.target_modules == ["all-linear"]:
            return len(shape) == 2 and not re.search("embed|lm_head|wte|wpe", module)
        return any(f".{module}".endswith(f".{target}") for target in self.target_modules)

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
        """Raises: ValueError if a target module does not exist; peft raises only if none does."""
        from torch import nn

        known = {name.rpartition(".")[2] for name, module in network.named_modules() if isinstance(module, nn.Linear)}
        names = [name for name, _ in network.named_modules()]
        for target in [] if self.target_modules == ["all-linear"] else self.target_modules:
            if not any(f".{name}".endswith(f".{target}") for name in names):
                raise ValueError(
                    f"finetune.target_modules={self.target_modules}: this model has no module {target}; "
                    f"expected [all-linear] or some of {', '.join(sorted(known))}"
                )


@dataclass(frozen=True)
class QLora(Lora):
    """LoRA on base weights in NF4 (Dettmers et al., arXiv 2305.14314). M_0 is the 4-bit model, in sampling too."""

    four_bit: ClassVar[bool] = True
