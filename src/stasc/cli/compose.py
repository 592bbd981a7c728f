"""Composes settings without a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from stasc.cli import resolvers  # noqa: F401 - conf/ refers to them
from stasc.machine.paths import CONF


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
