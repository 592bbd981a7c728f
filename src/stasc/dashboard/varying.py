"""Finds the settings that vary among runs, from their folders or from W&B."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from stasc.settings.deciding import is_inert
from stasc.settings.names import GROUPS, SYNONYMS, chosen_options, leaves, no_such_setting
from stasc.tracking import COMPLETE, read
from stasc.tracking.metrics import CHOICE

Settings = Mapping[str, str]  # of one run: the options of config groups and the settings by dotted name, as JSON

DEFAULT = ("init", "filter", "start", "finetune")
NO_CHOICE = ("seed", "variant", "baseline", "commit", "device")
NO_BASELINE = "none"
MOST = 1000  # W&B runs to read
_NAME = re.compile(r"\w+(\.\w+)*")


def config_key(setting: str) -> str:
    """Returns the key of a setting or config group in the config of a W&B run."""
    return f"{CHOICE}{setting}" if setting in (*GROUPS, "baseline") else setting


def check_settings(option: str, names: Iterable[str], runs: Sequence[Settings]) -> None:
    """Checks that the runs have these settings; without runs, only the spelling. Raises: ValueError."""
    known = sorted({name for run in runs for name in run})
    for name in names:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{option} {name}: expected a config group or setting, such as init or sampling.n_corr")
        if (runs or name in SYNONYMS) and name not in known:
            raise ValueError(f"{option} {no_such_setting(name, known)}")


def varying(runs: Sequence[Settings]) -> list[str]:
    """Returns the config groups and settings that vary among the runs that are no baselines, except the seed.

    A setting does not count if it follows from another one, as the path of a model follows from `model`.
    """
    runs = [run for run in runs if run["baseline"] == json.dumps(NO_BASELINE)]
    names = [*DEFAULT, *GROUPS, *sorted({name for run in runs for name in run})]
    found: dict[str, list[str | None]] = {}
    for name in dict.fromkeys(names):
        levels = [run.get(name) for run in runs]
        follows = name not in GROUPS and any(_follows(levels, other) for other in found.values())
        if len({*levels} - {None}) > 1 and name not in NO_CHOICE and not follows:
            found[name] = levels
    return [*found]


def _follows(levels: Sequence[str | None], others: Sequence[str | None]) -> bool:
    """Returns whether a setting's level is determined by another's, among the runs that have the setting."""
    pairs = {(other, level) for level, other in zip(levels, others, strict=True) if level is not None}
    return len(pairs) == len({other for other, _ in pairs})


def from_folders(sweep: Path) -> list[Settings]:
    """Returns the settings of the finished runs in a sweep's folder.

    Damaged journals are skipped; `python -m stasc.report` names them.
    """
    found = []
    for path in sorted(sweep.glob("*/journal.jsonl")):
        with suppress(ValueError):
            events = [*read(path)]
            started = [event for event in events if event["event"] == "run_started" and "config" in event]
            if started and events[-1].get("status") in COMPLETE:
                config, choices = started[-1]["config"], started[-1].get("choices")
                found.append(_settings(config, choices or chosen_options(config, {})))  # early versions have no choices
    return found


def from_wandb(api: Any, path: str, group: str | None) -> list[Settings]:
    """Returns the settings of the newest finished runs of a W&B project, or of a group in it."""
    filters = {"state": "finished", **({"group": group} if group else {})}
    runs = api.runs(path, filters=filters, order="-created_at", per_page=100, lazy=False)
    with suppress(ValueError):  # there is no such project yet
        return [_settings(run.config, _choices(run.config)) for run in islice(runs, MOST)]
    return []


def _choices(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(CHOICE): value for name, value in config.items() if name.startswith(CHOICE)}


def _settings(config: Mapping[str, Any], choices: Mapping[str, Any]) -> Settings:
    inner = {name: value for name, value in leaves(config).items() if _is_setting(name)}
    named = {"variant": config.get("variant"), "baseline": config.get("baseline") or NO_BASELINE}
    return {name: json.dumps(value, sort_keys=True) for name, value in {**inner, **named, **choices}.items()}


def _is_setting(name: str) -> bool:
    return bool(_NAME.fullmatch(name)) and not (name in GROUPS or is_inert(name) or name.endswith("_target_"))
