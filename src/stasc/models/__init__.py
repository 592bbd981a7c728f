"""M_0 and the models trained from it: weights, chat templates and configurations."""

from stasc.models.config import ModelConfig as ModelConfig
