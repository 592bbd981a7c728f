"""Fine-tuning: what is trained, on which loss, by which loop."""

from stasc.training.losses import NLL, Loss
from stasc.training.methods import Full, Lora, Method, QLora
from stasc.training.optimization import Optimization

__all__ = ["NLL", "Full", "Lora", "Loss", "Method", "Optimization", "QLora"]
