"""Resolvers that conf/ uses, as in `${stasc.name:variant}`. Importing this module registers them."""

from __future__ import annotations

import os
import sys

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from stasc.cli.messages import message
from stasc.cli.plain import plain
from stasc.settings.names import check_name


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
    from stasc.settings.table import settings_digest

    settings = OmegaConf.masked_copy(_root_, [str(group) for group in _root_ if group != "hydra"])
    return settings_digest(plain(settings, resolve=True))


def _options(*, _root_: DictConfig) -> str:
    """Returns a line for each config group that lists its options, for --help."""
    loader, chosen = GlobalHydra.instance().config_loader(), _root_.hydra.runtime.choices
    return "\n".join(
        f"{group}: "
        + ", ".join(
            f"{option}*" if option == chosen.get(group) else option for option in loader.get_group_options(group)
        )
        for group in loader.list_groups("")
        if group != "hydra"
    )


OmegaConf.register_new_resolver("stasc.name", _name, replace=True)
OmegaConf.register_new_resolver("stasc.env", _environment, replace=True)
OmegaConf.register_new_resolver("stasc.settings", _settings_digest, replace=True)
OmegaConf.register_new_resolver("stasc.options", _options, replace=True)
