"""The command line as people type it, in the form that Hydra reads: options first, paths quoted, no dashes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence

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
OPEN = ("model.template_args",)  # settings that hold any names: Hydra takes new ones with ++ only
_FOLDER = re.compile(r"\+{0,2}hydra\.(run|sweep)\.dir=")  # which Hydra makes without expanding a ~
_HOME = re.compile(r"(?:^|(?<=,))~(?:/[^,'\"]*)?(?=,|$)")  # among values with commas between them


def readable(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra reads them: its options come first, wherever they stood, and paths with `~` are quoted.

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
    return [*options, *settings]


def quoted(name: str, value: str) -> str:
    """A setting for the shell whose value is in quotes for Hydra, which then takes it as it is."""
    value = re.sub(r"(\\+)(?=['\"]|$)", r"\1\1", value)  # before a quote, Hydra takes a backslash for an escape
    if not set(value) & set('"$`\\!'):
        return f'"{name}=' + "'" + value.replace("'", r"\'") + "'" + '"'
    if not set(value) & set("'\""):
        return f"'{name}=" + f'"{value}"' + "'"
    return shlex.quote(f"{name}='" + value.replace("'", r"\'") + "'")


def _setting(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if not equals:
        return argument
    if name.lstrip("+") in (*GROUPS, "baseline") and value.startswith("["):  # Hydra would merge them
        raise ValueError(
            f"{argument}: a run has one option of a group; several make a sweep: --multirun {name}={value.strip('[]')}"
        )
    if _FOLDER.fullmatch(name + equals) and value.lstrip("'\"").startswith("~"):
        value = _expanded(name, value)
    if not any(quote in value for quote in "'\""):
        value = _HOME.sub(lambda found: f"'{found[0]}'", value)
    if any(name == one or name.startswith(f"{one}.") for one in OPEN):
        name = f"++{name}"
    return f"{name}={value}"


def _expanded(name: str, value: str) -> str:
    quote = value[0] if value[0] in "'\"" else "'"
    return f"{quote}{path_of(name, value.strip(quote))}{quote}"


def _check_option(argument: str, left: Iterator[str]) -> None:
    """Raises: ValueError for an option that Hydra does not know, as the setting that was probably meant."""
    name, equals, value = argument.partition("=")
    known = (*WITH_VALUE, *ALONE)
    setting = name.lstrip("-").replace("-", "_")
    abbreviated = any(one.startswith(name) for one in known) and setting not in (*GROUPS, "baseline", "experiment")
    if name in known or not name.startswith("--") or abbreviated:
        return
    if not equals:
        following = next(left, "")
        value = following if following and "=" not in following and not following.startswith("-") else "..."
    raise ValueError(
        f"{argument}: no such option (--help lists them); a setting is given without dashes: {setting}={value}"
    )
