"""M_0 and the models trained from it: weights, chat templates and configurations."""

from stasc.models.config import ModelConfig
from stasc.models.model import M_0, Model

__all__ = ["M_0", "Model", "ModelConfig"]
