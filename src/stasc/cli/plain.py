"""Turns OmegaConf's settings into plain data."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def plain(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """Returns settings as plain data, with or without their interpolations resolved."""
    config = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}
