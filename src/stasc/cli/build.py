"""From composed settings to the checked parts of a run."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.utils import _locate
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from stasc.cli.messages import belonging, reason_of
from stasc.cli.plain import plain
from stasc.settings.names import GROUPS, SYNONYMS, check_known, check_name, chosen_options, nearest

if TYPE_CHECKING:
    from stasc.records import Split
    from stasc.runs.experiment import Experiment

log = logging.getLogger(__name__)

CALLED_WITH = {  # parts that may be anybody's function
    "init": ("m_0", "m_prev"),
    "filter": ("r1", "r2"),
    "start": ("m_0", "m_prev"),
    "loss": ("logp", "step"),
    "reward": ("answer", "references"),
}
ENGINE = ("load", "batches", "sample", "release")


def build(cfg: DictConfig, group: str) -> Any:
    """The part that a group's settings describe, an instance of its `_target_`."""
    part = build_part(cfg[group], f"{group}.")
    if group in CALLED_WITH:
        _check_call(group, part)
    if group == "engine" and (missing := [name for name in ENGINE if not callable(getattr(part, name, None))]):
        raise ValueError(
            f"engine: {_name(type(part))} has no method {', '.join(missing)}; expected an engine with "
            f"{', '.join(ENGINE)}, see stasc.engines.engine.Engine"
        )
    return part


def build_part(cfg: DictConfig, prefix: str, target: type | None = None) -> Any:
    """An instance of `target`, or of the settings' own `_target_`; `prefix` stands before their names in errors.

    A dataclass has its settings checked against the types of its fields; any other callable is called with them.
    Raises: ValueError that names the setting.
    """
    try:
        settings = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert isinstance(settings, dict)
        settings = _literal(settings)
        name = settings.pop("_target_", None)
        kind = target or _located(prefix, name)
        if not is_dataclass(kind):
            _check_settings(prefix.rstrip("."), kind, settings)
            return hydra.utils.instantiate({"_target_": name, **settings}, _convert_="all")
        settings = listed(kind, settings)
        _check_shapes(prefix, kind, settings)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), settings))
    except ConfigKeyError as error:
        known = [field.name for field in fields(kind)]
        if told := belonging(f"{prefix}{error.full_key}", _loader()):
            raise ValueError(told) from error
        near = nearest(str(error.full_key), known)
        meant = f"{prefix}{near}" if near else SYNONYMS.get(str(error.full_key), "")
        hint = f"; did you mean {meant}?" if meant and " " not in meant else ""
        raise ValueError(f"{prefix}{error.full_key}: no such setting; there are {', '.join(known)}{hint}") from error
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} is not set, and has no default: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        setting = prefix + str(error.full_key or "").removeprefix(prefix)  # it may be that in `cfg`, or in the whole
        raise ValueError(f"{setting}: {reason_of(error)}") from error


def listed(kind: Any, settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """The settings of a dataclass, in which a text where a list belongs is a list of it: all-linear, [all-linear]."""
    lists = [field.name for field in fields(kind) if str(field.type).startswith("list[")]
    return {name: [value] if name in lists and isinstance(value, str) else value for name, value in settings.items()}


def _check_shapes(prefix: str, kind: Any, settings: Mapping[Any, Any]) -> None:
    """Raises: ValueError for a single value where a list or a mapping belongs, or one of these for the other."""
    for field in fields(kind):
        shape, value = str(field.type).partition("[")[0], settings.get(field.name)
        expected = {"list": (list, "a list, such as [a, b]"), "dict": (Mapping, "a mapping, such as {name: value}")}
        if value is not None and shape in expected and not isinstance(value, expected[shape][0]):
            raise ValueError(f"{prefix}{field.name}={value}: expected {expected[shape][1]}")


def _literal(value: Any) -> Any:
    """Plain data in which OmegaConf finds nothing to resolve: that was done, and what is left is text."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def _loader() -> ConfigLoader | None:
    return GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None


def _located(prefix: str, name: object) -> Any:
    try:
        return _locate(str(name))  # get_object would log its errors as well
    except (ImportError, ValueError) as error:
        cause, module = error.__cause__, str(name).split(".")[0]
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        if missing == module:
            reason = f"there is no module {module!r} in this folder, and none of that name is installed"
        elif missing and f"{name}.".startswith(f"{missing}."):
            reason = f"{missing.rpartition('.')[0]} has no {missing.rpartition('.')[2]}"
        else:
            reason = f"{type(cause).__name__}: {cause}" if cause else str(error).splitlines()[0]
        raise ValueError(f"{prefix}_target_={name}: {reason}") from error


def _check_settings(part: str, kind: Any, settings: dict[Any, Any]) -> None:
    """Checks that a function or class can be called with the settings. Raises: ValueError that says how it can."""
    signature = _signature(part, kind)
    if signature is None:
        return
    for letter in {"letter", "suffix"}.intersection(settings).difference(signature.parameters):
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            del settings[letter]  # for the variant's name, and none of the part's business
    given = {name: value for name, value in settings.items() if not str(name).startswith("_")}
    partial, arguments = settings.get("_partial_", False), settings.get("_args_", ())
    try:
        (signature.bind_partial if partial else signature.bind)(*arguments, **given)
    except TypeError as error:
        reason = str(error)
        if not partial and _takes(signature, CALLED_WITH.get(part, ()), given):
            reason = (
                f"it is called with ({', '.join(CALLED_WITH[part])}) later, not when it is built: "
                f"add _partial_: true to its settings, or +{part}._partial_=true on the command line"
            )
        raise ValueError(f"{part}: {_name(kind)}{signature} does not fit its settings: {reason}") from error


def _check_call(group: str, part: Any) -> None:
    """Checks that a part can be called as its group is. Raises: ValueError that says how that is."""
    expected = f"expected a function of ({', '.join(CALLED_WITH[group])})"
    if not callable(part):
        raise ValueError(
            f"{group} is {part!r}, {expected}: if its _target_ is that function, add _partial_: true "
            f"to its settings, or +{group}._partial_=true on the command line"
        )
    if group == "init" and not hasattr(part, "anew"):
        raise ValueError(f"init: {_name(part)} has no attribute anew, which says whether answers are sampled anew")
    signature = _signature(group, part)
    if signature is not None and not _takes(signature, CALLED_WITH[group], {}):
        raise ValueError(f"{group}: {_name(part)}{signature} has the wrong parameters, {expected}")


def _signature(part: str, kind: Any) -> inspect.Signature | None:
    """None where Python knows none, as of some functions written in C."""
    if not callable(kind):
        raise ValueError(f"{part}._target_: {kind!r} is neither a function nor a class")
    try:
        return inspect.signature(kind)
    except ValueError:
        return None


def _takes(signature: inspect.Signature, names: tuple[str, ...], given: Mapping[str, object]) -> bool:
    try:
        signature.bind(*names, **given)
    except TypeError:
        return False
    return bool(names)


def _name(kind: Callable[..., object]) -> str:
    function = getattr(kind, "func", kind)  # of a partial
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def build_experiment(cfg: DictConfig, chosen: Mapping[str, Any] | None = None) -> Experiment:
    """All parts of a run, built and checked against each other, and the questions. Loads no model.

    `chosen` are the options of config groups by their names, which settings alone don't tell.
    """
    from stasc.choices.pairing import PAIRINGS
    from stasc.choices.target import Nothing
    from stasc.runs.experiment import Experiment
    from stasc.runs.vote import NO_KEY, key_of
    from stasc.settings.sections import Evaluation, Loop, Sampling, StoreConfig
    from stasc.tasks.rewards.words import ZeroOnError

    singles = [*(field.name for field in fields(Loop)), "pairing", "reward_errors", "baseline", "variant"]
    check_known(
        plain(cfg, resolve=False), [*GROUPS, *singles, "sampling", "evaluation", "store", "sweep", "sweep.name"]
    )
    check_name("sweep.name", cfg.sweep.name)
    loop = build_part(OmegaConf.create({field.name: cfg[field.name] for field in fields(Loop)}), "", Loop)
    if cfg.pairing not in PAIRINGS:
        raise ValueError(f"pairing={cfg.pairing}: expected one of {', '.join(PAIRINGS)}")
    if cfg.reward_errors not in ("fail", "zero"):
        raise ValueError(f"reward_errors={cfg.reward_errors}: expected fail or zero")
    evaluation = build_part(cfg.evaluation, "evaluation.", Evaluation)
    parts = {
        group: build(cfg, group)
        for group in ("init", "start", "target", "finetune", "loss", "model", "prompt", "reward")
    }
    parts |= {"keep": build(cfg, "filter"), "engine": build(cfg, "engine"), "tracking": build(cfg, "tracking")}
    if cfg.baseline is not None:
        check_name("baseline", cfg.baseline)
    _check_target(parts["target"], parts["keep"], cfg)
    if cfg.reward_errors == "zero":
        parts["reward"] = ZeroOnError(parts["reward"])
    dataset = build(cfg, "dataset")
    train, test = _splits(dataset, parts["reward"], ("train", evaluation.split))
    if cfg.baseline == "self_consistency" and key_of(parts["reward"]) is None:
        raise ValueError(f"baseline=self_consistency: {NO_KEY}")
    settings = plain(cfg, resolve=True)
    built = {**parts, "filter": parts["keep"], "dataset": dataset}
    settings |= {group: listed(type(built[group]), settings[group]) for group in GROUPS if is_dataclass(built[group])}
    return Experiment(
        loop=replace(loop, iterations=0) if isinstance(parts["target"], Nothing) else loop,
        sampling=build_part(cfg.sampling, "sampling.", Sampling),
        evaluation=evaluation,
        store=build_part(cfg.store, "store.", StoreConfig),
        pairing=PAIRINGS[cfg.pairing],
        train=train,
        test=test,
        variant=check_name("variant", cfg.variant),
        settings=settings,
        choices=chosen_options(settings, chosen or {}),
        **parts,
    )


def _splits(dataset: Any, reward: Any, names: Sequence[str]) -> list[Split]:
    """The questions of two splits, which have none in common. Says which rows were left out, and which repeat another.

    Raises: ValueError if a split is empty, or a question has no reference that the reward can find in an answer.
    """
    from stasc.records import Split
    from stasc.tasks.datasets import Jsonl, Judged, check_disjoint, describe_repeated, describe_skipped
    from stasc.tasks.rewards.words import Reward, inner

    problem = inner(reward).problem if isinstance(inner(reward), Reward) else lambda references: None
    if isinstance(dataset, Judged):  # whose rows may be left out
        dataset = dataset.judged_by(problem)
    if isinstance(dataset, Jsonl):
        dataset.check_apart()
    skipped = {name: dataset.skipped(name) if hasattr(dataset, "skipped") else {} for name in names}
    repeated = {name: dataset.repeated(name) if hasattr(dataset, "repeated") else () for name in names}
    splits = [Split(name, tuple(dataset(name)), tuple(skipped[name]), tuple(repeated[name])) for name in names]
    if reasons := dict.fromkeys(reason for rows in skipped.values() for reason in rows.values()):
        log.warning(describe_skipped(reasons))
    if told := dict.fromkeys(row for rows in repeated.values() for row in rows):
        log.warning(describe_repeated(told))
    for split in splits:
        if not split.questions:
            raise ValueError(f"dataset.n_{split.name}: the {split.name} split has no question")
        for question in split.questions:
            if why := problem(question.references):
                raise ValueError(f"question {question.name}: {why}")
    check_disjoint(*(split.questions for split in splits))
    return splits


def _check_target(target: Any, keep: Callable[[float, float], bool], cfg: DictConfig) -> None:
    """Checks that what is not trained on corrections can keep something. Raises: ValueError naming the setting."""
    from stasc.choices.target import Correction

    if isinstance(target, Correction):
        return
    name = type(target).__name__.lower()
    if cfg.pairing != "own":
        raise ValueError(f"pairing={cfg.pairing} pairs corrections, of which target={name} has none: take pairing=own")
    if not keep(1.0, 1.0):
        raise ValueError(
            f"filter={type(keep).__name__.lower()} keeps nothing with target={name}, in whose pairs y2 is y1: take "
            "filter=lenient for the right ones, or filter=all"
        )
