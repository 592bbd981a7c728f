"""Optimizers by their names in `transformers.TrainingArguments`, set up as `Trainer` of transformers does."""

from __future__ import annotations

from typing import Any

from torch import nn, optim
from transformers import Adafactor
from transformers.trainer_pt_utils import get_parameter_names

from stasc.training.methods import Method

_WITHOUT_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]  # parameter names


def make_optimizer(network: nn.Module, method: Method) -> optim.Optimizer:
    """Returns an optimizer of a network's trainable parameters. Biases and norms get no weight decay."""
    decayed = set(get_parameter_names(network, [nn.LayerNorm], _WITHOUT_DECAY))
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": method.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    name, lr = method.optimizer, method.learning_rate
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
