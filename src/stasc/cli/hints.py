"""One-line messages for settings that Hydra cannot compose, with the correct line where it is known."""

from __future__ import annotations

import re
import traceback
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from types import FrameType
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stasc.cli.arguments import quoted
from stasc.settings.names import leaves, no_such_setting

OPTIONS: Mapping[str, Mapping[str, str]] = {  # what the paper, or other tools, call an option
    "init": {"m_0": "fixed", "base": "fixed"},
    "start": {"m_0": "fixed", "base": "fixed"},
    "filter": {
        **dict.fromkeys(("improving", "improve"), "strict"),
        **dict.fromkeys(("non_decreasing", "nondecreasing"), "lenient"),
        **dict.fromkeys(("none", "off", "no", "null", "false"), "all"),
    },
    "finetune": {"sft": "full", "peft": "lora"},
    "dataset": {"natural_questions": "nq", "nq_open": "nq"},
    "reward": {"em": "exact_match", "accuracy": "in_accuracy"},
    "tracking": dict.fromkeys(("none", "no", "null", "false", "disabled"), "off"),
}
FUNCTIONS = ("init", "filter", "start", "reward")  # groups whose part may be anybody's function
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
GSM8K = r"""'dataset.answer_pattern="####\s*(.+)$"'"""


def explain(error: Exception) -> str | None:
    """Returns the message for settings that Hydra could not compose; None for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, OmegaConfBaseException):
        return of_value(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, HydraException):
        return _composition(error, frames)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        override = next(frame.f_locals["override"] for frame in reversed(frames) if "override" in frame.f_locals)
        group, _, option = override.input_line.partition("=")
        loader = _loader(frames)
        return no_such_option(group, option, loader.get_group_options(group) if loader else [])
    return None


def of_value(error: OmegaConfBaseException) -> str:
    """Returns the message for an invalid value of a setting."""
    reason, name = reason_of(error), str(error.full_key or "settings")
    if name != "variant":
        return f"{name}: {reason}"
    return f"variant: {reason}; give variant=NAME"


def reason_of(error: OmegaConfBaseException) -> str:
    """Returns the first line of OmegaConf's message, with how to escape a text that it took for an interpolation."""
    reason = str(error.msg or error).splitlines()[0]
    return reason + (r"; a ${ that is text is written \${" if reason.startswith("Interpolation key") else "")


def no_such_option(group: str, option: str, options: Sequence[str]) -> str:
    """Returns the message for an unknown option of a config group."""
    said = f"{group}={option}: no such option; there are {', '.join(options)}"
    plain = option.lower().replace("-", "_")
    near = OPTIONS.get(group, {}).get(plain) or next(iter(get_close_matches(plain, options, n=1)), None)
    if group == "model":
        either = f"did you mean model={near}? Or " if near and "/" not in option else ""
        return f"{said}; {either}a model of the hub, a folder or a .gguf file: model=custom model.path={option}"
    if group == "dataset" and option.endswith(DATA_FILES):
        return f"{said}; a file of JSON Lines is given as dataset=jsonl dataset.path={option}"
    if near:
        return f"{said}; did you mean {group}={near}?"
    if group == "dataset":
        pattern = f" {GSM8K}" if "gsm8k" in plain else ""
        return f"{said}; other data are given as a file of JSON Lines: dataset=jsonl dataset.path=FILE.jsonl{pattern}"
    if group in FUNCTIONS and "." in option:
        return f"{said}; {_function(group, option)}"
    return f"{said}; one of yours is {group}/{option}.yaml in a folder named with --config-dir"


def _function(group: str, name: str) -> str:
    target = f"{name.removesuffix('.py')}.FUNCTION" if name.endswith(".py") else name
    return f"a function of yours is given as '~{group}' '+{group}={{_target_: {target}, _partial_: true}}'"


def _missing(error: MissingConfigException) -> str:
    found = re.match(r"(?:In '(.+?)': )?Could not find '(.+)'\s+Available options in '(.+)':", str(error))
    if not found or not error.options:
        return str(error).splitlines()[0]
    parent, path, group = found.groups()
    where = "" if parent in (None, "config") else f"conf/{parent}.yaml: "
    return where + no_such_option(group, path.removeprefix(f"{group}/"), error.options)


def _unreadable(error: OverrideParseException) -> str:
    """Returns the message for an argument that Hydra's grammar does not accept."""
    name, equals, value = error.override.partition("=")
    if not equals:
        return (
            f"{name}: expected NAME=VALUE, without spaces around the =; a value with spaces takes the shell's quotes, "
            f'as in "NAME={name} ..."'
        )
    if any(quote in value[:1] for quote in "'\""):
        return f"{error.override}: {str(error).splitlines()[0]}"
    return (
        f"{error.override}: Hydra reads quotes, braces, brackets, parentheses and some other signs as its own; a text "
        f"that has them takes two pairs of quotes: {quoted(name, value)}"
    )


def _composition(error: HydraException, frames: Sequence[FrameType]) -> str:
    said = str(error)
    if found := re.match(r"Multiple values for (\w+)\.", said):
        return f"{found[1]} is a group with an option chosen already: give {found[1]}=..., without the +, and once"
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?:\n1\.| requires)", said, re.S):
        return _several(found[1], _loader(frames))
    if found := re.match(r"Could not append to config\. An item is already at '(.+)'", said):
        return f"{found[1]} is a setting already: give {found[1]}=..., without the +"
    if (found := re.match(r"Could not override '([\w.]+)'\.", said)) and (told := _unknown(found[1], frames)):
        return told
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{said} {of_value(error.__cause__)}".strip()
    return " ".join(said.split())


def _several(argument: str, loader: ConfigLoader | None) -> str:
    name, _, value = argument.partition("=")
    said = f"{argument}: several values make a sweep: add --multirun"
    if re.search(r"\w\(", value) or (loader and name in loader.list_groups("")):
        return said
    return f"{said}; a list is {name}=[{value}], and a text with commas {quoted(name, value)}"


def _unknown(setting: str, frames: Sequence[FrameType]) -> str | None:
    """Returns the message for an override of an unknown setting; None for a setting of a user's own part."""
    found = [frame.f_locals for frame in reversed(frames) if {"cfg", "override"} <= frame.f_locals.keys()]
    if not found:
        return None
    cfg, value = found[0]["cfg"], found[0]["override"].input_line.partition("=")[2]
    group = setting.partition(".")[0]
    if group == setting and setting in FUNCTIONS and "_target_" in value:
        return f"{setting}={value}: a part of yours in place of an option is given as '~{setting}' '+{setting}={value}'"
    part = OmegaConf.select(cfg, f"{group}._target_")
    if part and not str(part).startswith("stasc."):
        return None
    known = [name for name in leaves(_plain(cfg)) if group == "hydra" or not name.startswith("hydra.")]
    return belonging(setting, _loader(frames), value) or no_such_setting(setting, known, value)


def belonging(setting: str, loader: ConfigLoader | None, value: str = "...") -> str | None:
    """Returns the message for a setting that belongs to another option of its group; None if it belongs to none."""
    group, _, name = setting.partition(".")
    every = _options(group, loader) if loader else []
    options = [f"{group}={option}" for option, settings in every if name.partition(".")[0] in settings]
    if not options:
        return None
    return f"{setting} belongs to {' and '.join(options)}: give {options[0]} {setting}={value}"


def _options(group: str, loader: ConfigLoader) -> list[tuple[str, Collection[str]]]:
    """The options of a group with the names of their settings."""
    found: list[tuple[str, Collection[str]]] = []
    if group == "hydra" or group not in loader.list_groups(""):
        return found
    for option in loader.get_group_options(group):
        try:
            cfg = loader.load_configuration("config", [f"{group}={option}"], RunMode.RUN)
        except (HydraException, OmegaConfBaseException):  # a broken one is not what was asked for
            continue
        if isinstance(part := OmegaConf.select(cfg, group), DictConfig):
            found.append((option, [*map(str, part)]))
    return found


def _loader(frames: Sequence[FrameType]) -> ConfigLoader | None:
    """What composes settings, also after Hydra has forgotten it."""
    every = (value for frame in frames for value in frame.f_locals.values())
    return next((value for value in every if isinstance(value, ConfigLoader)), None)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    settings = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(settings, dict)
    return {str(name): value for name, value in settings.items()}
