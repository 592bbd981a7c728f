"""Runs one job: the command's only run, or one of a sweep. Reports its errors."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.conf import HydraConf
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stasc.cli.build import build_experiment
from stasc.cli.compose import plain
from stasc.cli.messages import message
from stasc.machine import durable, paths, signals
from stasc.settings.names import check_inside
from stasc.tracking import Wandb, redact, scrub
from stasc.tracking.redaction import register_secrets

if TYPE_CHECKING:
    from stasc.tracking.console import Ended

log = logging.getLogger("stasc.run")
traceback_log = logging.getLogger("stasc.traceback")  # goes to run.log, not to the console
ended: list[Ended] = []  # the jobs of this process's sweep


def run_job(cfg: DictConfig, job: HydraConf) -> float:
    """Runs a job. Returns the final correction accuracy, for sweepers that maximise it; NaN if a sweep's job fails."""
    signals.check()  # an interrupt ends the sweep, not one job
    from stasc.tracking.console import Ended

    folder, sweeping = Path(job.runtime.output_dir), job.mode == RunMode.MULTIRUN
    summary = reason = None
    try:
        _hide_secrets(cfg, job)
        summary = _execute(cfg, job, folder)
    except (Exception, SystemExit) as error:  # a user's part may call sys.exit
        signals.check()
        traceback_log.exception("the run stopped")
        if not sweeping:
            _exit(error)
        log.error("%s failed: %s", folder.name, error)
        reason = scrub(f"{type(error).__name__}: {error}")
    if sweeping:
        ended.append(Ended(folder, _overrides(job), summary, reason))
    return float("nan") if summary is None else float(summary["iterations"][-1]["test"]["corr_acc"])


def _execute(cfg: DictConfig, job: HydraConf, folder: Path) -> Mapping[str, Any]:
    """Builds the experiment, executes it, and returns the run's summary."""
    sweeping = job.mode == RunMode.MULTIRUN
    if sweeping:
        _check_folder(job)
    built = build_experiment(cfg, job.runtime.choices)
    if sweeping and isinstance(built.tracking, Wandb) and os.environ.pop("WANDB_RUN_ID", ""):
        warn_once("WANDB_RUN_ID is the id of one run: each job of the sweep gets one of its own")
    if built.sampling.warning:
        warn_once(built.sampling.warning)
    from stasc.runs import execute  # imports torch, for which a wrong setting need not wait
    from stasc.tracking.console import Console

    sweep = cfg.sweep.name if sweeping else None
    summary = execute.run(built, folder, sweep, Console(split=built.test.name, brief=sweeping))
    if not sweeping:  # a sweep prints its folder below its table
        log.info("results: %s", os.path.relpath(folder, paths.start()))
    return summary


def _exit(error: BaseException) -> NoReturn:
    """Ends the command: with one line where the message says it all, else with a traceback."""
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, ValueError | OSError | FloatingPointError):  # a setting, the data, the disk or the loss
        print(f"error: {scrub(message(error))}", file=sys.stderr)
        sys.exit(os.EX_IOERR if durable.is_full(error) else 1)
    traceback.print_exception(error)
    sys.exit(1)


@cache
def warn_once(text: str) -> None:
    """Logs a warning the first time that a job of a sweep gives it."""
    log.warning(text)


def _hide_secrets(cfg: DictConfig, job: HydraConf) -> None:
    """Collects the secrets among a job's settings and replaces them in the job's configuration files.

    Hydra writes interpolations such as `${oc.env:TOKEN}` unresolved, but overrides as they were typed.
    """
    try:
        register_secrets(plain(cfg))
    except OmegaConfBaseException:  # a broken interpolation, which building the parts reports
        register_secrets(plain(cfg, resolve=False))
    files = [*Path(job.runtime.output_dir, job.output_subdir or ".hydra").glob("*.yaml")]
    sweep = Path(job.runtime.cwd, job.sweep.dir, "multirun.yaml")
    for file in [*files, sweep] if job.mode == RunMode.MULTIRUN else files:
        content = {"": OmegaConf.to_container(OmegaConf.load(file))}
        if (clean := redact(content)) != content:
            scratch = file.with_name(f".{file.name}")
            scratch.write_text(OmegaConf.to_yaml(clean[""]), encoding="utf-8")
            scratch.replace(file)


def _overrides(job: HydraConf) -> dict[str, str]:
    """Returns a job's overrides without secrets; of a swept setting, the job's own value."""
    given = redact({"": OmegaConf.to_container(job.overrides.task)})[""]  # resolved, they might fail or show a secret
    assert isinstance(given, list)
    pairs = (override.partition("=") for override in given)
    return {name.lstrip("+"): re.sub(r"\\(.)", r"\1", value) for name, _, value in pairs}  # without Hydra's escapes


def _check_folder(job: HydraConf) -> None:
    """Checks that no link leads a sweep's job out of multirun/, or out of the hydra.sweep.dir that was asked for."""
    root = Path(job.runtime.cwd, job.sweep.dir)
    asked = any(override.lstrip("+").startswith("hydra.sweep.dir=") for override in job.overrides.hydra)
    check_inside(Path(job.runtime.output_dir), root if asked else root.parent)
