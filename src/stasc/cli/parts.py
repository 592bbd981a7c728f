"""Builds one part of a run from its settings: an instance of what `_target_` names, checked before it is used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import hydra
from hydra._internal.utils import _locate  # the public get_object also logs its errors, which would appear twice
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from stasc.cli.messages import belonging, reason_of
from stasc.settings.calls import accepts, signature_of
from stasc.settings.names import NAMING, SYNONYMS, nearest

# How each part is called that may be any function. Where there are two ways, the first parameter's name tells them
# apart: a function of any other names is called in the first way.
CALLS = {
    "init": (("m_0", "m_prev"),),
    "filter": (("r1", "r2"), ("pair",)),
    "start": (("m_0", "m_prev"),),
    "dataset": (("split",), ("split", "problem")),
    "reward": (("answer", "references"), ("answers", "references")),
    "loss": (("logp", "step"),),
}
MEMBERS = {  # the module of a part's interface, and what a part of any class must have
    "init": ("stasc.choices.init", "anew"),
    "target": ("stasc.choices.target", "trains", "corrects", "stages", "example"),
    "prompt": ("stasc.tasks.prompt", "ask", "ask_to_correct"),
    "finetune": ("stasc.training.methods", "network", "save", "model", "saved_bytes", "steps"),
    "engine": ("stasc.engines.engine", "load", "batches", "sample", "release"),
}


def build(cfg: DictConfig, group: str) -> Any:
    """Returns the part that a group's settings describe, an instance of its `_target_`."""
    part = build_part(cfg[group], f"{group}.")
    if group in CALLS:
        _check_call(group, part)
    interface, *members = MEMBERS.get(group, ("",))
    if missing := [member for member in members if not hasattr(part, member)]:
        raise ValueError(f"{group}: {_name(part)} has no {', '.join(missing)}, see {interface}")
    return part


def build_part(cfg: DictConfig, prefix: str, target: type | None = None) -> Any:
    """Returns an instance of `target`, or of the settings' own `_target_`; `prefix` precedes their names in errors.

    A dataclass has its settings checked against the types of its fields; any other callable is called with them.
    Raises: ValueError that names the setting.
    """
    kind: Any = target
    try:
        settings = _literal(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        name = settings.pop("_target_", None)
        kind = target or _located(prefix, name)
        signature = signature_of(kind)
        settings = _without_names(signature, settings)
        if not is_dataclass(kind):
            if signature:
                _check_settings(prefix.rstrip("."), kind, signature, settings)
            return hydra.utils.instantiate({"_target_": name, **settings}, _convert_="all")
        settings = listed(kind, settings)
        _check_shapes(prefix, kind, settings)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), settings))
    except OmegaConfBaseException as error:
        raise ValueError(_explained(error, prefix, kind)) from error


def listed(kind: Any, settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns the settings of a dataclass with a text for a list as a list of it: all-linear, [all-linear]."""
    lists = [field.name for field in fields(kind) if str(field.type).startswith("list[")]
    return {name: [value] if name in lists and isinstance(value, str) else value for name, value in settings.items()}


def _literal(value: Any) -> Any:
    """Returns plain data with its `${` escaped, as OmegaConf would resolve them again."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", value)
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def _without_names(signature: inspect.Signature | None, settings: Mapping[Any, Any]) -> dict[Any, Any]:
    """Returns the settings without the keys that name the variant, unless the class or function takes them."""
    taken = signature.parameters.values() if signature else ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        return dict(settings)
    dropped = {*NAMING.values()}.difference(parameter.name for parameter in taken)
    return {name: value for name, value in settings.items() if name not in dropped}


def _explained(error: OmegaConfBaseException, prefix: str, kind: Any) -> str:
    """Returns the message for settings that OmegaConf refuses."""
    key = str(error.full_key or "")
    if isinstance(error, MissingMandatoryValue):
        return f"{key} is not set, and has no default: give {key}=..."
    if not isinstance(error, ConfigKeyError):
        setting = prefix + key.removeprefix(prefix)  # the key may be relative to the part, or to all settings
        return f"{setting}: {reason_of(error)}"
    loader = GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else None
    if hint := belonging(f"{prefix}{key}", loader):
        return hint
    known = [field.name for field in fields(kind)]
    near = nearest(key, known)
    meant = f"{prefix}{near}" if near else SYNONYMS.get(key, "")
    hint = f"; did you mean {meant}?" if meant and " " not in meant else ""
    return f"{prefix}{key}: no such setting; there are {', '.join(known)}{hint}"


def _check_shapes(prefix: str, kind: Any, settings: Mapping[Any, Any]) -> None:
    """Raises: ValueError for anything but a list where a list belongs, and likewise for a mapping."""
    expected = {"list": (list, "a list, such as [a, b]"), "dict": (Mapping, "a mapping, such as {name: value}")}
    for field in fields(kind):
        shape, value = str(field.type).partition("[")[0], settings.get(field.name)
        if value is not None and shape in expected and not isinstance(value, expected[shape][0]):
            raise ValueError(f"{prefix}{field.name}={value}: expected {expected[shape][1]}")


def _located(prefix: str, name: object) -> Any:
    """Returns what `_target_` names. Raises: ValueError saying which part of the name is missing."""
    try:
        located = _locate(str(name))
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
    if not callable(located):
        raise ValueError(f"{prefix}_target_: {located!r} is neither a function nor a class")
    return located


def _check_settings(part: str, kind: Any, signature: inspect.Signature, settings: Mapping[Any, Any]) -> None:
    """Checks that a function or class can be called with the settings. Raises: ValueError that says how it can."""
    given = {name: value for name, value in settings.items() if not str(name).startswith("_")}
    partial, arguments = settings.get("_partial_", False), settings.get("_args_", ())
    try:
        (signature.bind_partial if partial else signature.bind)(*arguments, **given)
    except TypeError as error:
        reason = str(error)
        calls = [names for names in CALLS.get(part, ()) if accepts(signature, names, given)]
        if not partial and calls:
            reason = (
                f"it is called with ({', '.join(calls[0])}) later, not when it is built: "
                f"add _partial_: true to its settings, or +{part}._partial_=true on the command line"
            )
        raise ValueError(f"{part}: {_name(kind)}{signature} does not fit its settings: {reason}") from error


def _check_call(group: str, part: Any) -> None:
    """Checks that a part can be called as its group is. Raises: ValueError that says how that is."""
    calls = CALLS[group]
    expected = "expected a function of " + " or ".join(f"({', '.join(names)})" for names in calls)
    if not callable(part):
        raise ValueError(
            f"{group} is {part!r}, {expected}: if its _target_ is that function, add _partial_: true "
            f"to its settings, or +{group}._partial_=true on the command line"
        )
    signature = signature_of(part)
    if signature is None:
        return
    first = next(iter(signature.parameters), None)
    if not any(accepts(signature, names) for names in [names for names in calls if names[0] == first] or calls[:1]):
        raise ValueError(f"{group}: {_name(part)}{signature} has the wrong parameters, {expected}")


def _name(kind: Callable[..., object]) -> str:
    function = getattr(kind, "func", kind)  # what a partial wraps
    return str(getattr(function, "__qualname__", type(function).__qualname__))
