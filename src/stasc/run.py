"""The command: composes the settings, checks them, builds the parts, and runs. The only place that knows Hydra."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from stasc import signals

if TYPE_CHECKING:
    from stasc.experiment import Experiment

log = logging.getLogger(__name__)
traceback_log = logging.getLogger("stasc.traceback")  # goes to run.log, not to the console

_PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if folder.is_dir())


def build(cfg: DictConfig, group: str) -> Any:
    """The part that a group's settings describe, an instance of its `_target_`."""
    return build_part(cfg[group], f"{group}.")


def build_part(cfg: DictConfig, prefix: str, target: type | None = None) -> Any:
    """An instance of `target`, or of the settings' own `_target_`; `prefix` stands before their names in errors.

    A dataclass has its settings checked against the types of its fields; any other callable is called with them.
    Raises: ValueError that names the setting.
    """
    try:
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(settings, dict)
        name = settings.pop("_target_", None)
        kind = target or _located(prefix, name)
        if not is_dataclass(kind):
            return hydra.utils.instantiate({"_target_": name, **settings}, _convert_="all")
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), settings))
    except ConfigKeyError as error:
        known = ", ".join(field.name for field in fields(kind))
        raise ValueError(f"{prefix}{error.full_key}: no such setting; there are {known}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{prefix}{error.full_key or ''}: {str(error.msg or error).splitlines()[0]}") from error


def _located(prefix: str, name: object) -> Any:
    try:
        return hydra.utils.get_object(str(name))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{prefix}_target_={name}: {str(error).splitlines()[-1]}") from error


def build_experiment(cfg: DictConfig) -> Experiment:
    """All parts of a run, built and checked against each other, and the questions. Loads no model."""
    from stasc.dataset import check_disjoint
    from stasc.experiment import Experiment
    from stasc.pairing import PAIRINGS
    from stasc.records import Split
    from stasc.settings import Evaluation, Loop, Sampling
    from stasc.tracking import redact

    loop = OmegaConf.create({field.name: cfg[field.name] for field in fields(Loop)})
    if cfg.pairing not in PAIRINGS:
        raise ValueError(f"pairing={cfg.pairing}: expected one of {', '.join(PAIRINGS)}")
    evaluation = build_part(cfg.evaluation, "evaluation.", Evaluation)
    parts = {group: build(cfg, group) for group in ("init", "start", "finetune", "model", "prompt", "reward")}
    parts |= {"keep": build(cfg, "filter"), "engine": build(cfg, "engine"), "tracking": build(cfg, "tracking")}
    dataset = build(cfg, "dataset")
    train = Split("train", tuple(dataset("train")))
    test = Split(evaluation.split, tuple(dataset(evaluation.split)))
    for split in (train, test):
        if not split.questions:
            raise ValueError(f"dataset.n_{split.name}: the {split.name} split has no question")
    check_disjoint(train.questions, test.questions)
    return Experiment(
        loop=build_part(loop, "", Loop),
        sampling=build_part(cfg.sampling, "sampling.", Sampling),
        evaluation=evaluation,
        pairing=PAIRINGS[cfg.pairing],
        train=train,
        test=test,
        variant=cfg.variant,
        config=redact(_plain(cfg, resolve=True)),
        **parts,
    )


def hide_secrets(cfg: DictConfig, job: HydraConf) -> None:
    """Learns the secrets among a job's settings, and takes them out of the files that Hydra wrote of it.

    Hydra keeps interpolations like `${oc.env:TOKEN}` in these, but an override's value as it was given.
    """
    from stasc.tracking import learn, redact

    try:
        learn(_plain(cfg, resolve=True))
    except OmegaConfBaseException:  # a broken interpolation; what needs it will say so
        learn(_plain(cfg, resolve=False))
    files = [*Path(job.runtime.output_dir, job.output_subdir or ".hydra").glob("*.yaml")]
    for file in [*files, Path(job.sweep.dir, "multirun.yaml")] if job.mode == RunMode.MULTIRUN else files:
        content = {"": OmegaConf.to_container(OmegaConf.load(file))}
        if (clean := redact(content)) != content:
            scratch = file.with_name(f".{file.name}")
            scratch.write_text(OmegaConf.to_yaml(clean[""]), encoding="utf-8")
            scratch.replace(file)


def _plain(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    config = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float:
    """One run; a sweep has many. Returns the final correction accuracy, for sweepers that optimise."""
    signals.check()  # an interrupt ends a sweep, not one job of it
    job = HydraConfig.get()
    hide_secrets(cfg, job)
    from stasc import experiment
    from stasc.console import Console
    from stasc.tracking import scrub

    console = Console()
    try:
        summary = experiment.run(build_experiment(cfg), Path(job.runtime.output_dir), cfg.sweep.name, console)
    except Exception as error:
        signals.check()
        traceback_log.exception("the run stopped")
        if job.mode == RunMode.MULTIRUN:
            log.error("job %s (%s) failed: %s", job.job.num, cfg.variant, error)
            raise
        if isinstance(error, ValueError | OSError | FloatingPointError):  # of a setting, the data, the disk, the loss
            sys.exit(f"error: {scrub(str(error))}")  # the message says it all
        raise
    return float(summary["iterations"][-1]["test"]["corr_acc"])


def main() -> None:
    """Runs the command line."""
    sys.path.append("")  # the installed command finds modules of the working folder, as `python -m` does
    signals.install()
    try:
        _job()
    except signals.Stopped as stop:
        print(f"stopped by {stop}", file=sys.stderr)
        sys.exit(stop.status)


if __name__ == "__main__":
    main()
