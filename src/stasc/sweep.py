"""A sweep: all its jobs are known before the first begins, and what became of each is told at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

log = logging.getLogger(__name__)


class Expect(Callback):
    """Tells the store of all jobs of a sweep, so that the first does not drop weights that a later one needs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from stasc import preparation
        from stasc.build import build_experiment
        from stasc.tracking import scrub

        try:
            for cfg, folder in jobs(config):
                try:
                    preparation.expect(preparation.prepare(build_experiment(cfg)), folder)
                except (Exception, SystemExit) as error:  # the job will say it too; its weights may be derived twice
                    log.warning("%s could not be foreseen: %s", folder.name, scrub(str(error)))
        except Exception as error:  # of the composition: Hydra reports it
            log.debug("the sweep's jobs could not be foreseen: %s", error)


def jobs(config: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """The settings and the folder of each job of a sweep that the basic sweeper makes."""
    root = Path(config.hydra.sweep.dir)  # first: a time in its name, once resolved, is that of all jobs
    loader = GlobalHydra.instance().config_loader()
    given = [f"{name}={value}" for name, value in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = OverridesParser.create(loader).parse_overrides([*given, *config.hydra.overrides.task])
    for batch in BasicSweeper.split_arguments(overrides, None):
        for override in batch:
            cfg = loader.load_sweep_config(config, list(override))
            folder = root / cfg.hydra.sweep.subdir
            with open_dict(cfg):
                del cfg["hydra"]
            yield cfg, folder
