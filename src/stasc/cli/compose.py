"""Composes settings with Hydra, and registers the resolvers that conf/ uses, as in `${stasc.name:variant}`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from stasc.cli.messages import message
from stasc.machine.paths import CONF
from stasc.settings.deciding import settings_digest
from stasc.settings.names import NAMING, check_name, variant_part


@contextmanager
def config_loader() -> Iterator[ConfigLoader]:
    """Yields Hydra's loader for the files in conf/."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def compose(overrides: Sequence[str]) -> DictConfig:
    """Returns the settings of a run with these overrides."""
    with config_loader():
        return hydra.compose("config", list(overrides))


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """Returns settings as plain data, with or without their interpolations resolved."""
    config = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def variant(settings: Mapping[str, Any], *groups: str) -> str:
    """Returns a run's short name, such as `EIE-lora`: the parts of these config groups, or of all that have one."""
    return "".join(variant_part(settings, group) for group in groups or NAMING)


def _variant(*groups: str, _root_: DictConfig) -> str:
    return variant(_root_, *groups)


def _name(setting: str, *, _root_: DictConfig) -> str:
    """Returns the value of a setting that may name a folder. Exits if it may not."""
    try:
        return check_name(setting, OmegaConf.select(_root_, setting))
    except ValueError as error:  # OmegaConf would wrap it in errors of its own
        sys.exit(f"error: {message(error)}")


def _environment(variable: str, default: str | None) -> str | None:
    """Returns an environment variable's value, or the default where it is unset or empty."""
    return os.environ.get(variable, "").strip() or default


def _settings_digest(*, _root_: DictConfig) -> str:
    """Returns the hash of the settings that decide a job's results."""
    return settings_digest(plain(OmegaConf.masked_copy(_root_, [str(group) for group in _root_ if group != "hydra"])))


def _options(*, _root_: DictConfig) -> str:
    """Returns a line for each config group that lists its options, for --help."""
    loader, chosen = GlobalHydra.instance().config_loader(), _root_.hydra.runtime.choices
    return "\n".join(
        f"{group}: " + ", ".join(one + "*" * (one == chosen.get(group)) for one in loader.get_group_options(group))
        for group in loader.list_groups("")
        if group != "hydra"
    )


OmegaConf.register_new_resolver("stasc.variant", _variant, replace=True)
OmegaConf.register_new_resolver("stasc.name", _name, replace=True)
OmegaConf.register_new_resolver("stasc.env", _environment, replace=True)
OmegaConf.register_new_resolver("stasc.settings", _settings_digest, replace=True)
OmegaConf.register_new_resolver("stasc.options", _options, replace=True)
