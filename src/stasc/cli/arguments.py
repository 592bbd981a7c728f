"""Reads the command line as people type it and rewrites it for Hydra: options first, paths quoted, no dashes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stasc.machine.paths import path_of
from stasc.settings.names import GROUPS

WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
)
ALONE = (
    *("--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"),
    *("--shell-completion", "-sc", "--info", "-i"),
)
CHOSEN = (*GROUPS, "baseline", "experiment")  # config groups
OPEN = ("model.template_args",)  # settings with keys of any name, which Hydra accepts with ++ only
_FOLDER = re.compile(r"\+{0,2}hydra\.(run|sweep)\.dir=")  # Hydra does not expand ~ in these
_NO_TEXT = re.compile(r"true|false|null|[-+.\d]+", re.IGNORECASE)  # Hydra accepts no such option of a group
_HOME = re.compile(r"(?:^|(?<=,))~(?:/[^,'\"]*)?(?=,|$)")  # one of several values with commas between them


@dataclass(frozen=True)
class Command:
    """A command line: Hydra's options apart from the settings."""

    options: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """The command line in the order that Hydra needs."""
        return [*self.options, *self.settings]

    @property
    def config_dir(self) -> str | None:
        """The folder given with --config-dir."""
        for option, following in zip(self.options, (*self.options[1:], ""), strict=False):
            name, equals, value = option.partition("=")
            if name in ("--config-dir", "-cd"):
                return value if equals else following
        return None

    def has(self, option: str, short: str = "") -> bool:
        """Returns whether an option was given, in full or abbreviated."""
        return any(one == short or (len(one) > 2 and option.startswith(one)) for one in self.options)


def parse(arguments: Sequence[str]) -> Command:
    """Sorts the arguments into options and settings, and quotes paths with `~`.

    Raises: ValueError for a setting that is written as an option, such as --seed=1, and for a list of options.
    """
    options, settings = [], []
    left = iter(arguments)
    for argument in left:
        if not argument.startswith("-"):
            settings.append(_setting(argument))
            continue
        _check_option(argument, left)
        options.append(argument)
        if argument in WITH_VALUE:
            options += [value for value in [next(left, None)] if value is not None]
    experiments = [setting for setting in settings if setting.startswith("experiment=")]
    if len(experiments) > 1:  # Hydra would take the last
        raise ValueError(f"{' '.join(experiments)}: an experiment is chosen once")
    return Command(tuple(options), tuple(settings))


def quoted(name: str, value: str) -> str:
    """Returns `name=value` for the shell, with a second pair of quotes that makes Hydra take the value literally."""
    value = re.sub(r"(\\+)(?='|$)", r"\1\1", value)  # Hydra reads a backslash before its quote as an escape
    if not set(value) & set('"$`\\!'):
        return f'"{name}=' + "'" + value.replace("'", r"\'") + "'" + '"'
    if not set(value) & set("'\""):
        return f"'{name}=" + f'"{value}"' + "'"
    return shlex.quote(f"{name}='" + value.replace("'", r"\'") + "'")


def _setting(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals:
        return argument
    if name.lstrip("+") in (*GROUPS, "baseline") and value.startswith("["):  # Hydra would merge the options
        raise ValueError(
            f"{argument}: a run has one option of a group; several make a sweep: --multirun {name}={value.strip('[]')}"
        )
    if _FOLDER.fullmatch(name + equals) and value.lstrip("'\"").startswith("~"):
        quote = value[0] if value[0] in "'\"" else "'"
        value = f"{quote}{path_of(name, value.strip(quote))}{quote}"
    if not any(quote in value for quote in "'\""):
        value = _HOME.sub(lambda found: f"'{found[0]}'", value)
    if name in CHOSEN and _NO_TEXT.fullmatch(value):
        value = f"'{value}'"
    if any(name == one or name.startswith(f"{one}.") for one in OPEN):
        name = f"++{name}"
    return f"{name}={value}"


def _check_option(argument: str, left: Iterator[str]) -> None:
    """Raises: ValueError for an unknown option, with the setting that was probably meant."""
    name, equals, value = argument.partition("=")
    known = (*WITH_VALUE, *ALONE)
    setting = name.lstrip("-").replace("-", "_")
    abbreviated = any(one.startswith(name) for one in known) and setting not in CHOSEN
    if name in known or not name.startswith("--") or abbreviated:
        return
    if not equals:
        following = next(left, "")
        value = following if following and "=" not in following and not following.startswith("-") else "..."
    raise ValueError(
        f"{argument}: no such option (--help lists them); a setting is given without dashes: {setting}={value}"
    )
