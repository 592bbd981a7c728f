"""A sweep: all its jobs are known before the first begins; how far it is, is told before each."""

from __future__ import annotations

import json
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
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from stasc import fsx
from stasc.names import DECLARED
from stasc.units import duration_text

if TYPE_CHECKING:
    from stasc.store import Store

    Stages = list[tuple[Store, str, str]]  # of a job, by kind and key

log = logging.getLogger(__name__)


class Expect(Callback):
    """Tells the store of all jobs of a sweep, so that the first does not drop weights that a later one needs.

    Before each job it says how far the sweep is. When the first job of a sweep's first command starts, its seeds and
    the values that it sweeps are written down.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._begun = 0
        self._jobs: list[Stages] = []
        self._declared: tuple[Path, bytes] | None = None  # to be written

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from stasc import preparation
        from stasc.build import build_experiment
        from stasc.tracking import scrub

        seeds: list[int] = []
        try:
            for cfg, folder in jobs(config):
                seeds.append(int(cfg.seed))
                stages: Stages = []
                try:
                    prepared = preparation.prepare(build_experiment(cfg))
                    preparation.expect(prepared, folder)
                    store = preparation.open_store(prepared)
                    stages = [(store, step.kind, step.key) for step in prepared.steps]
                except (Exception, SystemExit) as error:  # the job will say it too; its weights may be derived twice
                    log.warning("%s could not be foreseen: %s", folder.name, scrub(str(error)))
                self._jobs.append(stages)
            self._declared = declaration(config, seeds)
        except Exception as error:  # of the composition: Hydra reports it
            log.debug("the sweep's jobs could not be foreseen: %s", error)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if not self._jobs:  # no sweep
            return
        if self._declared:
            fsx.write(*self._declared)
            self._declared = None
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


def declaration(config: DictConfig, seeds: Sequence[int]) -> tuple[Path, bytes] | None:
    """What a sweep's first command declares: its seeds, and the values of each setting that it sweeps.

    Seeds that are added later, once results are known, make these look surer than they are, and the report says so.
    Returns: the file and its content. None for a later command.
    """
    from stasc.tracking import redact

    folder = Path(config.hydra.sweep.dir).absolute()
    if any(folder.glob("*/.hydra")):
        return None
    swept = {one.key_or_group: [*one.sweep_string_iterator()] for one in _given(config) if one.is_sweep_override()}
    content = {"schema": 1, "seeds": sorted({*seeds}), "swept": redact(swept)}
    return folder / DECLARED, json.dumps(content, indent=1).encode() + b"\n"


def jobs(config: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """The settings and the folder of each job of a sweep that the basic sweeper makes."""
    root = Path(config.hydra.sweep.dir)  # first: a time in its name, once resolved, is that of all jobs
    loader = GlobalHydra.instance().config_loader()
    for batch in BasicSweeper.split_arguments(_given(config), None):
        for override in batch:
            cfg = loader.load_sweep_config(config, list(override))
            folder = root / cfg.hydra.sweep.subdir
            with open_dict(cfg):
                del cfg["hydra"]
            yield cfg, folder


def _given(config: DictConfig) -> list[Override]:
    """The overrides of a sweep's command, those of its experiment first."""
    params = [f"{name}={value}" for name, value in (config.hydra.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*params, *config.hydra.overrides.task])
