"""A sweep: all its jobs are known before the first begins; how far it is, is told before each."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from stasc.units import duration_text

if TYPE_CHECKING:
    from stasc.store import Store

    Stages = list[tuple[Store, str, str]]  # of a job, by kind and key

log = logging.getLogger(__name__)


class Expect(Callback):
    """Tells the store of all jobs of a sweep, so that the first does not drop weights that a later one needs.

    Before each job it says how far the sweep is.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._begun = 0
        self._jobs: list[Stages] = []

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from stasc import preparation
        from stasc.build import build_experiment
        from stasc.tracking import scrub

        try:
            for cfg, folder in jobs(config):
                stages: Stages = []
                try:
                    prepared = preparation.prepare(build_experiment(cfg))
                    preparation.expect(prepared, folder)
                    store = preparation.open_store(prepared)
                    stages = [(store, step.kind, step.key) for step in prepared.steps]
                except (Exception, SystemExit) as error:  # the job will say it too; its weights may be derived twice
                    log.warning("%s could not be foreseen: %s", folder.name, scrub(str(error)))
                self._jobs.append(stages)
        except Exception as error:  # of the composition: Hydra reports it
            log.debug("the sweep's jobs could not be foreseen: %s", error)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if not self._jobs:  # no sweep
            return
        line = f"job {self._begun + 1} of {len(self._jobs)}: {config.variant}, seed {config.seed}"
        if self._begun:
            line += f"; {duration_text(time.monotonic() - self._began)} so far"
        if left := seconds_left(self._jobs, self._begun):
            line += f"; about {duration_text(left)} to go"
        self._begun += 1
        log.info(line)


def seconds_left(jobs: Sequence[Stages], done: int) -> float | None:
    """What the jobs after the first `done` will take: each stage that is not there, as long as those of its kind took.

    A stage that several jobs share counts once. None if of some kind nothing has been computed yet.
    """
    took: dict[str, dict[str, float]] = defaultdict(dict)  # seconds of what is there, by kind and key
    missing: set[tuple[str, str]] = set()
    for number, stages in enumerate(jobs):
        for store, kind, key in stages:
            if key in took[kind]:
                continue
            if artifact := store.find(kind, key):
                took[kind][key] = artifact.seconds
            elif number >= done:  # what a job left out will not come
                missing.add((kind, key))
    if any(not took[kind] for kind, _ in missing):
        return None
    return sum(fmean(took[kind].values()) for kind, _ in missing)


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
