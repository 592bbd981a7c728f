"""Foresees the jobs of a sweep, reports their progress, and records what the sweep declared at first."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict

from stasc.cli.build import build_experiment
from stasc.machine import durable
from stasc.settings.names import DECLARED
from stasc.tracking import redact, scrub
from stasc.units import counted, duration_text

if TYPE_CHECKING:  # every run builds this callback, and a wrong setting need not wait for torch
    from stasc.sweeps.foresee import Stages

log = logging.getLogger(__name__)


class Expect(Callback):
    """Hydra callback that announces all jobs of a sweep to the store, so that it keeps weights that later jobs need.

    It logs the sweep's progress before each job. When the first job of a sweep's first command starts, it writes down
    the sweep's seeds and swept values.
    """

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._begun = 0
        self._jobs: list[Stages] = []
        self._declared: tuple[Path, bytes] | None = None  # to be written

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Announces the jobs of the sweep to the store."""
        from stasc.runs import prepare
        from stasc.sweeps.foresee import expect

        seeds: list[int] = []
        try:
            swept = [one for one in _given(config) if one.is_sweep_override()]
            n = prod(len([*one.sweep_string_iterator()]) for one in swept)
            log.info("checking %s before the first starts", counted(n, "job"))
            for cfg, folder in jobs(config):
                seeds.append(int(cfg.seed))
                stages: Stages = []
                try:
                    prepared = prepare.prepare(build_experiment(cfg))
                    expect(prepared, folder)
                    store = prepare.open_store(prepared)
                    stages = [(store, step.kind, step.key) for step in prepared.steps]
                except (Exception, SystemExit) as error:  # the job reports it too; its weights may be derived twice
                    log.warning("%s could not be foreseen: %s", folder.name, scrub(str(error)))
                self._jobs.append(stages)
            self._declared = declaration(config, seeds)
        except Exception as error:  # Hydra reports composition errors
            log.debug("the sweep's jobs could not be foreseen: %s", error)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Logs the sweep's progress."""
        if not self._jobs:  # no sweep
            return
        from stasc.sweeps.foresee import seconds_left

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
    """Returns the file in which a sweep's first command declares its seeds and swept values, with its content.

    Seeds that are added once results are known make these look more certain than they are; the report warns of them.
    Returns None for a later command.
    """
    folder = Path(config.hydra.sweep.dir).absolute()
    if any(folder.glob("*/.hydra")):
        return None
    swept = {one.key_or_group: [*one.sweep_string_iterator()] for one in _given(config) if one.is_sweep_override()}
    content = {"schema": 1, "seeds": sorted({*seeds}), "swept": redact(swept)}
    return folder / DECLARED, json.dumps(content, indent=1).encode() + b"\n"


def jobs(config: DictConfig) -> Iterator[tuple[DictConfig, Path]]:
    """Yields the settings and the folder of each job that Hydra's basic sweeper makes, in its order."""
    root = Path(config.hydra.sweep.dir)  # resolved first: all jobs share a time in its name
    loader = GlobalHydra.instance().config_loader()
    given = {one.get_key_element(): one for one in _given(config)}  # the last override of a setting counts
    values = (
        [*one.sweep_string_iterator()] if one.is_sweep_override() else [one.get_value_element_as_str()]
        for one in given.values()
    )
    for job in product(*values):
        cfg = loader.load_sweep_config(config, [f"{name}={value}" for name, value in zip(given, job, strict=True)])
        folder = root / cfg.hydra.sweep.subdir
        with open_dict(cfg):
            del cfg["hydra"]
        yield cfg, folder


def _given(config: DictConfig) -> list[Override]:
    """Returns the overrides of a sweep's command, those of its experiment first."""
    params = [f"{name}={value}" for name, value in (config.hydra.sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return parser.parse_overrides([*params, *config.hydra.overrides.task])
