"""Builds a run from composed settings: all its parts, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from stasc.cli.compose import plain
from stasc.cli.parts import build, build_part, listed
from stasc.settings.check import expect
from stasc.settings.names import GROUPS, check_known, check_name, chosen_options
from stasc.settings.sections import Evaluation, Loop, Sampling, StoreConfig

if TYPE_CHECKING:
    from stasc.runs.experiment import Experiment


def build_experiment(cfg: DictConfig, chosen: Mapping[str, Any] | None = None) -> Experiment:
    """Returns all parts of a run, built and checked against each other, and the questions. Loads no model.

    `chosen` are the names of the options that were chosen, which settings alone do not tell.
    """
    from stasc.choices.filter import by_pair
    from stasc.choices.pairing import PAIRINGS
    from stasc.runs.experiment import Experiment, check_target
    from stasc.runs.vote import NO_KEY, key_of
    from stasc.tasks.datasets import load, no_problem
    from stasc.tasks.rewards import ZeroOnError, attribute

    loop = _loop(cfg)
    expect("pairing", cfg.pairing, cfg.pairing in PAIRINGS, f"one of {', '.join(PAIRINGS)}")
    expect("reward_errors", cfg.reward_errors, cfg.reward_errors in ("fail", "zero"), "fail or zero")
    evaluation = build_part(cfg.evaluation, "evaluation.", Evaluation)
    parts = {group: build(cfg, group) for group in GROUPS}
    settings = plain(cfg)
    settings |= {group: listed(type(part), settings[group]) for group, part in parts.items() if is_dataclass(part)}
    if cfg.baseline is not None:
        check_name("baseline", cfg.baseline)
    if cfg.baseline == "self_consistency" and key_of(parts["reward"]) is None:
        raise ValueError(f"baseline=self_consistency: {NO_KEY}")
    if cfg.reward_errors == "zero":
        parts["reward"] = ZeroOnError(parts["reward"])
    problem = attribute(parts["reward"], "problem") or no_problem
    train, test = load(parts.pop("dataset"), ("train", evaluation.split), problem)
    check_target(parts["target"], parts["filter"], cfg.pairing, train.questions)
    return Experiment(
        loop=loop if parts["target"].trains else replace(loop, iterations=0),
        sampling=build_part(cfg.sampling, "sampling.", Sampling),
        evaluation=evaluation,
        store=build_part(cfg.store, "store.", StoreConfig),
        keep=by_pair(parts["filter"]),
        pairing=PAIRINGS[cfg.pairing],
        train=train,
        test=test,
        variant=check_name("variant", cfg.variant),
        settings=settings,
        choices=chosen_options(settings, chosen or {}),
        **parts,
    )


def _loop(cfg: DictConfig) -> Loop:
    """Returns the settings of the loop, once no setting is unknown or missing."""
    of_loop = [field.name for field in fields(Loop)]
    singles = [*of_loop, "pairing", "reward_errors", "baseline", "variant"]
    known = [*GROUPS, *singles, "sampling", "evaluation", "store", "sweep", "sweep.name"]
    check_known(plain(cfg, resolve=False), known)
    check_name("sweep.name", cfg.sweep.name)
    loop: Loop = build_part(OmegaConf.create({name: cfg[name] for name in of_loop}), "", Loop)
    return loop
