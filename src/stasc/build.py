"""From composed settings to the checked parts of a run."""

from __future__ import annotations

import logging
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from stasc.names import check_name

if TYPE_CHECKING:
    from stasc.preparation import Experiment

log = logging.getLogger(__name__)


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
    from stasc.dataset import check_disjoint, describe_skipped
    from stasc.pairing import PAIRINGS
    from stasc.preparation import Experiment
    from stasc.records import Split
    from stasc.reward import ZeroOnError
    from stasc.settings import Evaluation, Loop, Sampling, StoreConfig

    check_name("sweep.name", cfg.sweep.name)
    loop = OmegaConf.create({field.name: cfg[field.name] for field in fields(Loop)})
    if cfg.pairing not in PAIRINGS:
        raise ValueError(f"pairing={cfg.pairing}: expected one of {', '.join(PAIRINGS)}")
    if cfg.reward_errors not in ("fail", "zero"):
        raise ValueError(f"reward_errors={cfg.reward_errors}: expected fail or zero")
    evaluation = build_part(cfg.evaluation, "evaluation.", Evaluation)
    parts = {group: build(cfg, group) for group in ("init", "start", "finetune", "model", "prompt", "reward")}
    parts |= {"keep": build(cfg, "filter"), "engine": build(cfg, "engine"), "tracking": build(cfg, "tracking")}
    if cfg.reward_errors == "zero":
        parts["reward"] = ZeroOnError(parts["reward"])
    dataset = build(cfg, "dataset")
    names = ("train", evaluation.split)
    skipped = {name: dataset.skipped(name) if hasattr(dataset, "skipped") else {} for name in names}
    train, test = (Split(name, tuple(dataset(name)), tuple(skipped[name])) for name in names)
    if reasons := dict.fromkeys(reason for rows in skipped.values() for reason in rows.values()):
        log.warning(describe_skipped(reasons))
    for split in (train, test):
        if not split.questions:
            raise ValueError(f"dataset.n_{split.name}: the {split.name} split has no question")
    check_disjoint(train.questions, test.questions)
    return Experiment(
        loop=build_part(loop, "", Loop),
        sampling=build_part(cfg.sampling, "sampling.", Sampling),
        evaluation=evaluation,
        store=build_part(cfg.store, "store.", StoreConfig),
        pairing=PAIRINGS[cfg.pairing],
        train=train,
        test=test,
        variant=check_name("variant", cfg.variant),
        settings=plain(cfg, resolve=True),
        **parts,
    )


def plain(cfg: DictConfig, resolve: bool) -> dict[str, Any]:
    """Settings as plain data."""
    config = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}
