"""The network in memory, a single one for all models of a run."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from stasc.machine import processor
from stasc.models.model import M_0, Model, Network
from stasc.models.weights import check_loaded, swap_weights


class LiveModel:
    """Holds one network in memory, which `load` turns into any model of the run.

    Args:
        base: folder or hub name of M_0.
        four_bit: whether base weights, those of M_0 included, are held in NF4 (bitsandbytes).
        context: most tokens of a prompt and its answer; None if the model has no limit.

    `before_read` is called with each model whose files are about to be read. It checks them, and derives missing ones.
    """

    def __init__(
        self,
        base: str,
        revision: str | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        four_bit: bool,
        attention: str | None = None,
        context: int | None = None,
    ) -> None:
        if four_bit and dtype == torch.float64:
            raise ValueError(
                "model.dtype=float64 cannot be held in 4 bits: set model.dtype=auto, or finetune=lora, not qlora"
            )
        if attention == "flex_attention" and device.type == "cpu":
            raise ValueError(
                "model.attention=flex_attention cannot be trained on the CPU: set model.attention=null, or "
                "model.device=cuda"
            )
        processor.prepare(device)
        self.base, self.revision = base, revision
        self.device, self.dtype, self.four_bit, self.attention = device, dtype, four_bit, attention
        self.context = context
        self._current: tuple[Model, torch.dtype] | None = None
        self._loading_s = 0.0
        self._network: Network | None = None
        self.before_read: Callable[[Model], None] = lambda model: None

    @property
    def training_dtype(self) -> torch.dtype:
        """The dtype of trained weights; in 16 bits, rounding would swallow steps of usual learning rates."""
        return torch.float32 if self.dtype in (torch.bfloat16, torch.float16) else self.dtype

    def load(self, model: Model, dtype: torch.dtype | None = None) -> Network:
        """Returns the network of `model`, in `dtype` or in the dtype of sampling. Keeps it if it is in memory."""
        wanted = (model, dtype or self.dtype)
        if self._current == wanted and self._network is not None:
            return self._network
        if model != M_0:
            self.before_read(model)
        began = time.perf_counter()
        network: Network = self._base_network(*wanted)
        if model.adapter is not None:
            from peft import PeftModel

            if not (model.adapter / "adapter_model.safetensors").is_file():  # peft would open adapter_model.bin
                raise OSError(f"no adapter_model.safetensors in {model.adapter}")
            network = PeftModel.from_pretrained(network, model.adapter, is_trainable=True)
        self.adopt(model, network, wanted[1])
        self._loading_s += time.perf_counter() - began
        return network

    def folders(self, model: Model) -> tuple[Path, Path | None]:
        """Returns the folders of a model's base weights and of its adapter, if it has one, for engines that read them.

        The files are checked first, and derived again if need be.
        """
        if model != M_0:
            self.before_read(model)
        return model.weights or Path(self.base), model.adapter

    def pop_loading_s(self) -> float:
        """Returns the seconds spent on reading weights since the last call."""
        seconds, self._loading_s = self._loading_s, 0.0
        return seconds

    def adopt(self, model: Model, network: Network, dtype: torch.dtype) -> None:
        """Registers `network`, such as a fine-tuned one, as `model`: `load` need not read it."""
        self._current, self._network = (model, dtype), network

    def holds(self, model: Model) -> bool:
        """Returns whether `model` is in memory."""
        return self._current is not None and self._current[0] == model

    def renamed(self, old: Model, new: Model) -> None:
        """Renames the model in memory after its files have moved."""
        if self._current and self._current[0] == old:
            self._current = (new, self._current[1])

    def release(self) -> None:
        """Frees the memory of the network. `load` reads it again."""
        self._current = self._network = None
        gc.collect()
        processor.release_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _base_network(self, model: Model, dtype: torch.dtype) -> PreTrainedModel:
        """Returns the network of `model` without its adapter: the one in memory, if it can be reused."""
        network, current = self._network, self._current
        self._network = self._current = None
        if network is not None and current is not None and current[1] == dtype:
            if current[0].weights == model.weights:
                base = network if isinstance(network, PreTrainedModel) else network.unload()
                assert isinstance(base, PreTrainedModel)
                return base
            source = model.weights or Path(self.base)
            if isinstance(network, PreTrainedModel) and not self.four_bit and swap_weights(network, source):
                return network
        del network  # two may not fit into memory
        return self._read(model.weights, dtype)

    def _read(self, weights: Path | None, dtype: torch.dtype) -> PreTrainedModel:
        settings: dict[str, Any] = {}  # a quantization_config of None would override that of config.json
        if self.four_bit:
            nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
            settings["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                weights or self.base,
                revision=None if weights else self.revision,
                dtype=dtype,
                attn_implementation=self.attention,
                device_map={"": self.device},
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # check_loaded refuses them, with a better message
                **settings,
            )
        except OSError as error:
            raise OSError(
                f"the weights of {weights or self.base} cannot be read: {error}; "
                "set model.path to a model with safetensors weights"
            ) from error
        except (ImportError, ValueError) as error:
            if self.attention is None:
                raise
            raise ValueError(f"model.attention={self.attention}: {error}; set model.attention=null") from error
        network, report = loaded
        report["mismatched_keys"] |= _misshapen(network)
        check_loaded(weights or self.base, report, network.state_dict())
        for module in network.modules():
            # On a CPU with AVX-512 BF16, bitsandbytes would repack the weights at the first forward pass without
            # gradients: rounded once more, permanently, and without a gradient, so fine-tuning would learn noise.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return cast(PreTrainedModel, network)


def _misshapen(network: PreTrainedModel) -> set[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Returns weights of another shape than their layer: name, found, expected.

    transformers does not compare weights in 4 bits, and up to 5.20 no weight of a quantised model.
    """
    found: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set()
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            stored = tuple(getattr(module.weight, "quant_state", module.weight).shape)
            if stored != (shape := (module.out_features, module.in_features)):
                found.add((f"{name}.weight", stored, shape))
    return found
