"""A sweep: all its jobs are known before the first begins; how far it is, is told before each."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from stasc.cli.internals import BasicSweeper
from stasc.machine import durable
from stasc.settings.names import DECLARED
from stasc.sweeps.foresee import seconds_left
from stasc.units import duration_text

if TYPE_CHECKING:
    from stasc.store.artifacts import Store

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
        from stasc.cli.build import build_experiment
        from stasc.runs import prepare
        from stasc.sweeps import foresee
        from stasc.tracking import scrub

        seeds: list[int] = []
        try:
            for cfg, folder in jobs(config):
                seeds.append(int(cfg.seed))
                stages: Stages = []
                try:
                    prepared = prepare.prepare(build_experiment(cfg))
                    foresee.expect(prepared, folder)
                    store = prepare.open_store(prepared)
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
            durable.write(*self._declared)
            self._declared = None
        line = f"job {self._begun + 1} of {len(self._jobs)}: {config.variant}, seed {config.seed}"
        if self._begun:
            line += f"; {duration_text(time.monotonic() - self._began)} so far"
        if left := seconds_left(self._jobs, self._begun):
            line += f"; about {duration_text(left)} to go"
        self._begun += 1
        log.info(line)


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
