"""One-line messages for settings that Hydra cannot compose, with the correct setting where it is known."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stasc.cli.arguments import CHOSEN, Command, quoted
from stasc.machine.paths import CONF
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
FUNCTIONS = ("init", "filter", "start", "reward")  # groups whose part may be a function of the user's
DATA_FILES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
GSM8K = r"""'dataset.answer_pattern="####\s*(.+)$"'"""


def explain(error: Exception, command: Command, loader: ConfigLoader) -> str | None:
    """Returns the message for a command whose settings could not be composed; None for any other error."""
    if isinstance(error, OmegaConfBaseException):
        return of_value(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, HydraException):
        return _composition(error, command, loader)
    if isinstance(error, RecursionError):
        return f"{_recursive_file(command)} refers to itself by an alias, or is nested too deeply"
    if isinstance(error, yaml.YAMLError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        cfg = loader.load_configuration("config", [*_search_path(command), *command.settings], RunMode.MULTIRUN)
        sweeps = cfg.hydra.mode == RunMode.MULTIRUN or command.has("--multirun", "-m")
        setting = "hydra.sweep.dir" if sweeps else "hydra.run.dir"
        return f"{setting}: {error.filename}: {error.strerror}; set {setting} to a folder of yours"
    return None


def message(error: BaseException) -> str:
    """Returns the message for an error of a run."""
    if isinstance(error, OmegaConfBaseException):
        return of_value(error)
    if isinstance(error, OSError) and error.filename is None and error.strerror:
        return error.strerror  # `paths.naming_setting` made it name the setting
    return str(error)


def of_value(error: OmegaConfBaseException) -> str:
    """Returns the message for an invalid value of a setting."""
    name = str(error.full_key or "settings")
    return f"{name}: {reason_of(error)}{'; give variant=NAME' if name == 'variant' else ''}"


def reason_of(error: OmegaConfBaseException) -> str:
    """Returns the first line of OmegaConf's message, with how to escape a text that it took for an interpolation."""
    reason = str(error.msg or error).splitlines()[0]
    return reason + (r"; a ${ that is text is written \${" if reason.startswith("Interpolation key") else "")


def no_such_option(group: str, option: str, options: Sequence[str]) -> str:
    """Returns the message for an unknown option of a config group."""
    said = f"{group}={option}: no such option; there are {', '.join(options)}"
    word = option.lower().replace("-", "_")
    near = OPTIONS.get(group, {}).get(word) or next(iter(get_close_matches(word, options, n=1)), None)
    if group == "model":
        either = f"did you mean model={near}? Or " if near and "/" not in option else ""
        return f"{said}; {either}a model of the hub, a folder or a .gguf file: model=custom model.path={option}"
    if group == "dataset" and option.endswith(DATA_FILES):
        return f"{said}; a file of JSON Lines is given as dataset=jsonl dataset.path={option}"
    if near:
        return f"{said}; did you mean {group}={near}?"
    if group == "dataset":
        pattern = f" {GSM8K}" if "gsm8k" in word else ""
        return f"{said}; other data are given as a file of JSON Lines: dataset=jsonl dataset.path=FILE.jsonl{pattern}"
    if group in FUNCTIONS and "." in option:
        target = f"{option.removesuffix('.py')}.FUNCTION" if option.endswith(".py") else option
        own = f"'~{group}' '+{group}={{_target_: {target}, _partial_: true}}'"
        return f"{said}; a function of yours is given as {own}"
    return f"{said}; one of yours is {group}/{option}.yaml in a folder named with --config-dir"


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


def _composition(error: HydraException, command: Command, loader: ConfigLoader) -> str:
    said = str(error)
    if found := re.match(r"Multiple values for (\w+)\.", said):
        return f"{found[1]} is a group with an option chosen already: give {found[1]}=..., without the +, and once"
    if found := re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'(?:\n1\.| requires)", said, re.S):
        return _several(found[1])
    if found := re.match(r"Could not append to config\. An item is already at '(.+)'", said):
        return f"{found[1]} is a setting already: give {found[1]}=..., without the +"
    found = re.match(r"Could not override '([\w.]+)'\.", said)
    if found and (reason := _unknown(found[1], command, loader)):
        return reason
    if isinstance(error.__cause__, OmegaConfBaseException):
        return f"{said} {of_value(error.__cause__)}".strip()
    return " ".join(said.split())


def _several(argument: str) -> str:
    name, _, value = argument.partition("=")
    said = f"{argument}: several values make a sweep: add --multirun"
    if re.search(r"\w\(", value) or name in CHOSEN:
        return said
    return f"{said}; a list is {name}=[{value}], and a text with commas {quoted(name, value)}"


def _unknown(setting: str, command: Command, loader: ConfigLoader) -> str | None:
    """Returns the message for an override of an unknown setting; None for a setting of a user's own part."""
    names = {override: override.partition("=")[0].lstrip("+~") for override in command.settings}
    value = next((override.partition("=")[2] for override, name in names.items() if name == setting), "")
    group = setting.partition(".")[0]
    if group == setting and setting in FUNCTIONS and "_target_" in value:
        return f"{setting}={value}: a part of yours in place of an option is given as '~{setting}' '+{setting}={value}'"
    chosen = [override for override, name in names.items() if name in CHOSEN]
    cfg = loader.load_configuration("config", [*_search_path(command), *chosen], RunMode.MULTIRUN)
    part = OmegaConf.select(cfg, f"{group}._target_")
    if part and not str(part).startswith("stasc."):
        return None
    settings: Any = OmegaConf.to_container(cfg)
    known = [name for name in leaves(settings) if group == "hydra" or not name.startswith("hydra.")]
    return belonging(setting, loader, value, _search_path(command)) or no_such_setting(setting, known, value)


def belonging(
    setting: str, loader: ConfigLoader | None, value: str = "...", search_path: Sequence[str] = ()
) -> str | None:
    """Returns the message for a setting that belongs to another option of its group; None if it belongs to none."""
    group, _, name = setting.partition(".")
    if loader is None or group == "hydra":
        return None
    options = []
    for option in loader.get_group_options(group, overrides=[*search_path]):
        with suppress(HydraException, OmegaConfBaseException):  # a broken file that was not chosen
            cfg = loader.load_configuration("config", [*search_path, f"{group}={option}"], RunMode.RUN)
            part = OmegaConf.select(cfg, group)
            if isinstance(part, DictConfig) and name.partition(".")[0] in map(str, part):
                options.append(f"{group}={option}")
    if not options:
        return None
    return f"{setting} belongs to {' and '.join(options)}: give {options[0]} {setting}={value}"


def _recursive_file(command: Command) -> Path | str:
    """Returns a YAML file that recurses without end; tries those of chosen options first."""
    folders = [Path(folder) for folder in (command.config_dir, CONF) if folder]
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    for file in sorted(files, key=lambda file: f"{file.parent.name}={file.stem}" not in command.settings):
        try:
            OmegaConf.load(file)
        except RecursionError:
            return file.absolute()
        except (OSError, ValueError, yaml.YAMLError):
            continue
    return "a YAML file"


def _search_path(command: Command) -> list[str]:
    """Returns the override that adds the user's folder of settings."""
    if command.config_dir is None:
        return [setting for setting in command.settings if setting.startswith("hydra.searchpath=")]
    folder = str(Path(command.config_dir).absolute()).replace("'", r"\'")
    return [f"hydra.searchpath=['file://{folder}']"]
