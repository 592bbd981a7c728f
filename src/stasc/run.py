"""The command: composes the settings, checks them, builds the parts, and runs. The only place that knows Hydra."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stasc.cli.arguments import readable
from stasc.cli.build import build_experiment, plain
from stasc.machine import durable, paths, signals
from stasc.machine.paths import CONF
from stasc.machine.stdio import outlive_readers
from stasc.settings.names import check_inside, check_name

if TYPE_CHECKING:
    from stasc.runs.experiment import Experiment
    from stasc.tracking.console import Ended

log = logging.getLogger("stasc.run")  # which __name__ is not when this is what `python -m` runs
traceback_log = logging.getLogger("stasc.traceback")  # goes to run.log, not to the console


def _name(setting: str, *, _root_: DictConfig) -> str:
    """Of `${stasc.name:SETTING}`: the setting's value, which has to be a name."""
    try:
        return check_name(setting, OmegaConf.select(_root_, setting))
    except ValueError as error:
        if isinstance(error, OmegaConfBaseException):
            from stasc.cli.hints import of_value

            sys.exit(f"error: {of_value(error)}")
        sys.exit(f"error: {error}")  # as an exception, it would come out of OmegaConf and Hydra as a traceback


OmegaConf.register_new_resolver("stasc.name", _name, replace=True)


def _environment(variable: str, default: str | None) -> str | None:
    """Of `${stasc.env:VARIABLE,DEFAULT}`: the variable's value, or the default where it is unset or empty."""
    return os.environ.get(variable, "").strip() or default


OmegaConf.register_new_resolver("stasc.env", _environment, replace=True)


def _settings_digest(*, _root_: DictConfig) -> str:
    from stasc.settings.table import settings_digest

    ours = OmegaConf.masked_copy(_root_, [str(group) for group in _root_ if group != "hydra"])
    return settings_digest(plain(ours, resolve=True))


OmegaConf.register_new_resolver("stasc.settings.sections", _settings_digest, replace=True)


def _options(*, _root_: DictConfig) -> str:
    """The groups with their options, a line each, for --help."""
    loader, chosen = GlobalHydra.instance().config_loader(), _root_.hydra.runtime.choices
    return "\n".join(
        f"{group}: "
        + ", ".join(
            f"{option}*" if option == chosen.get(group) else option for option in loader.get_group_options(group)
        )
        for group in loader.list_groups("")
        if group != "hydra"
    )


OmegaConf.register_new_resolver("stasc.options", _options, replace=True)


def hide_secrets(cfg: DictConfig, job: HydraConf) -> None:
    """Learns the secrets among a job's settings, and takes them out of the files that Hydra wrote of it.

    Hydra keeps interpolations like `${oc.env:TOKEN}` in these, but an override's value as it was given.
    """
    from stasc.tracking import learn, redact

    try:
        learn(plain(cfg, resolve=True))
    except OmegaConfBaseException:  # a broken interpolation; what needs it will say so
        learn(plain(cfg, resolve=False))
    files = [*Path(job.runtime.output_dir, job.output_subdir or ".hydra").glob("*.yaml")]
    sweep = Path(job.runtime.cwd, job.sweep.dir, "multirun.yaml")
    for file in [*files, sweep] if job.mode == RunMode.MULTIRUN else files:
        content = {"": OmegaConf.to_container(OmegaConf.load(file))}
        if (clean := redact(content)) != content:
            scratch = file.with_name(f".{file.name}")
            scratch.write_text(OmegaConf.to_yaml(clean[""]), encoding="utf-8")
            scratch.replace(file)


_ended: list[Ended] = []  # the jobs of this process's sweep


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float:
    """One run; a sweep has many. Returns the final correction accuracy, for sweepers that optimise."""
    signals.check()  # an interrupt ends a sweep, not one job of it
    job = HydraConfig.get()
    hide_secrets(cfg, job)
    from stasc.runs import execute
    from stasc.tracking import scrub
    from stasc.tracking.console import Console, Ended

    folder = Path(job.runtime.output_dir)
    settings = _overrides(job)
    try:
        if job.mode == RunMode.MULTIRUN:
            _check_folder(job)
        built = build_experiment(cfg, job.runtime.choices)
        if job.mode == RunMode.MULTIRUN:
            built = _one_of_many(built)
        if built.sampling.warning:
            _warn_once(built.sampling.warning)
        console = Console(split=built.test.name, brief=job.mode == RunMode.MULTIRUN)
        summary = execute.run(built, folder, cfg.sweep.name, console)
        if job.mode == RunMode.RUN:  # a sweep ends with a table that tells
            log.info("results: %s", os.path.relpath(folder, paths.start()))
    except (Exception, SystemExit) as error:  # a part of the user's may call sys.exit
        signals.check()
        traceback_log.exception("the run stopped")
        if job.mode == RunMode.MULTIRUN:
            log.error("%s failed: %s", folder.name, error)
            _ended.append(Ended(folder, settings, None, scrub(f"{type(error).__name__}: {error}")))
            return float("nan")
        if durable.is_full(error):
            print(f"error: {scrub(str(error))}", file=sys.stderr)
            sys.exit(os.EX_IOERR)
        if isinstance(error, OmegaConfBaseException):
            from stasc.cli.hints import of_value

            sys.exit(f"error: {scrub(of_value(error))}")
        if isinstance(error, ValueError | OSError | FloatingPointError):  # of a setting, the data, the disk, the loss
            # The message says it all; where it names a setting, an error number before it says nothing more.
            text = error.strerror if isinstance(error, OSError) and error.filename is None else None
            sys.exit(f"error: {scrub(text or str(error))}")
        raise
    if job.mode == RunMode.MULTIRUN:
        _ended.append(Ended(folder, settings, summary, None))
    return float(summary["iterations"][-1]["test"]["corr_acc"])


def _one_of_many(built: Experiment) -> Experiment:
    """A job of a sweep, for which W&B gets a name and an id of its own: what the user gives is for all jobs."""
    from stasc.tracking import Wandb

    tracking = built.tracking
    if not isinstance(tracking, Wandb):
        return built
    if os.environ.pop("WANDB_RUN_ID", None):
        _warn_once("WANDB_RUN_ID is the id of one run: each job of the sweep gets one of its own")
    if not tracking.name:
        return built
    name = f"{tracking.name}-{built.variant}-seed{built.loop.seed}"
    return replace(built, tracking=replace(tracking, name=name))


@cache
def _warn_once(message: str) -> None:
    """Of all the jobs of a sweep, the first says it."""
    log.warning(message)


def _overrides(job: HydraConf) -> dict[str, str]:
    """What was given for a job on the command line, a sweep's value of the job for all its values, without secrets."""
    from stasc.tracking import redact

    given = redact({"": OmegaConf.to_container(job.overrides.task)})[""]  # resolved, they might fail, or tell a secret
    assert isinstance(given, list)
    pairs = (override.partition("=") for override in given)
    return {
        name.lstrip("+"): re.sub(r"\\(.)", r"\1", value) for name, _, value in pairs
    }  # Hydra escapes what it parsed


def _check_folder(job: Any) -> None:
    """Checks that no link leads a sweep's job out of multirun/, or out of the hydra.sweep.dir that was asked for."""
    root = Path(job.runtime.cwd, job.sweep.dir)
    asked = any(override.lstrip("+").startswith("hydra.sweep.dir=") for override in job.overrides.hydra)
    check_inside(Path(job.runtime.output_dir), root if asked else root.parent)


def main() -> None:
    """Runs the command line."""
    outlive_readers()
    try:
        paths.begin()
        sys.argv[1:] = readable(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"error: {error}")
    sys.path.append(str(paths.start()))  # the installed command finds its modules, as `python -m` does
    # peft asks transformers for a property by its old name; there is nothing that a user could do about it
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    in_full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors over, which it would print with a traceback
    signals.install()
    try:
        _job()
    except signals.Stopped as stop:
        print(f"stopped by {stop}: the same command again reuses what is done", file=sys.stderr)
        sys.exit(stop.status)
    except Exception as error:
        reason = None if in_full else _config_error(error)
        if reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(os.EX_IOERR if durable.is_full(error) else 1)
    if _ended:
        from stasc.tracking.console import Console

        Console().sweep(_ended)
        if any(ended.error for ended in _ended):
            sys.exit(1)


def _config_error(error: Exception) -> str | None:
    """What is wrong with the settings, if they could not be composed; None if it is something else that went wrong."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if any(frame.f_code is _job.__wrapped__.__code__ for frame in frames):
        return None
    if isinstance(error, RecursionError):
        file = next((frame.f_locals["full_path"] for frame in frames if "full_path" in frame.f_locals), "a YAML file")
        return f"{file} refers to itself by an alias, or is nested too deeply"
    if type(error).__module__.startswith("yaml."):  # whose types mypy does not know
        return " ".join(str(error).split())
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        setting = "hydra.sweep.dir" if any(frame.f_code.co_name == "multirun" for frame in frames) else "hydra.run.dir"
        return f"{setting}: {error.filename}: {error.strerror}; set {setting} to a folder of yours"
    from stasc.cli.hints import explain

    return explain(error)


if __name__ == "__main__":
    main()
