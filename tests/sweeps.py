"""Synthetic sweeps on disk, in the files of real runs: settings, journals, summaries and outcomes."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any
from unittest import mock

import numpy as np
import yaml

from stasc.choices.filter import Lenient, Strict
from stasc.cli.compose import variant
from stasc.records import Answer, Iteration, Pair, Question, Split
from stasc.runs.folder import SCHEMA, RunFolder
from stasc.settings.deciding import settings_digest
from stasc.tasks.rewards import InAccuracy
from stasc.tracking import Journal
from stasc.tracking.tracker import Nothing

CONF = Path(__file__).parents[1] / "conf"
PAPER8 = {"init": ("fixed", "evolving"), "filter": ("strict", "lenient"), "start": ("fixed", "evolving")}
ALL16 = {**PAPER8, "finetune": ("full", "lora")}
Levels = Mapping[str, str]
MACHINE = {
    "platform": "Linux",
    "processor": "Example CPU",
    "instructions": "AVX512",
    "threads": 2,
    "accelerator": "none",
}


def accuracies(levels: Levels, n: int) -> tuple[float, float]:
    """Returns the accuracies of initial answers and corrections: lenient filters cost 8 points, fixed starts 3."""
    slope = 1.0 if levels.get("filter") != "lenient" else 0.5
    slope *= 1.0 if levels.get("start") != "fixed" else 0.8
    return 0.42 + 0.04 * slope * n, 0.36 + 0.07 * slope * n


@dataclass(frozen=True)
class Made:
    """A synthetic sweep. `settings` are further overrides, `right` returns the accuracies of a variant's M_n.

    `edited` are settings that conf/ itself had at the time. `facts` is the number of questions about each subject. A
    baseline's run has levels such as `{"baseline": "gold", "variant": "gold"}`.
    """

    factors: Mapping[str, Sequence[str]] = field(default_factory=lambda: PAPER8)
    seeds: Sequence[int] = (0, 1, 2)
    questions: int = 40
    iterations: int = 3
    samples: int = 1
    settings: Sequence[str] = ()
    edited: Sequence[str] = ()
    facts: int = 1
    right: Callable[[Levels, int], tuple[float, float]] = accuracies
    train_questions: int = 4
    seed_sd: float = 0.1  # of training runs' ability, in standard deviations of question difficulty
    answer: str = "The answer to {question} is {word}, as everybody knows."
    data: str = "made"  # the start of the questions' ids


def write_sweep(root: Path, made: Made | None = None, name: str = "example") -> Path:
    """Writes every run of a sweep, as in `multirun/NAME`. Returns: its folder."""
    made, folder = made or Made(), root / name
    grid = [dict(zip(made.factors, levels, strict=True)) for levels in itertools.product(*made.factors.values())]
    for levels, seed in itertools.product(grid, made.seeds):
        write_run(folder, levels, seed, made)
    task = [f"{setting}={','.join(levels)}" for setting, levels in made.factors.items()]
    write_multirun(folder, [*task, f"seed={','.join(map(str, made.seeds))}", *made.settings])
    return folder


def write_multirun(folder: Path, task: Sequence[str]) -> None:
    """Writes the multirun.yaml that Hydra leaves beside the jobs of a sweep, with the command's overrides."""
    content = {"hydra": {"overrides": {"hydra": ["hydra.mode=MULTIRUN"], "task": [*task]}, "sweeper": {"params": None}}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "multirun.yaml").write_text(yaml.safe_dump(content))


def write_run(
    sweep: Path, levels: Levels, seed: int, made: Made, *, status: str = "finished", until: int | None = None
) -> Path:
    """Writes a run that ended with `status` after iteration `until`, or all. Returns: its folder.

    `running` is a run that was killed: nothing was written at its end. `early` failed before its journal began.
    """
    config = settings(levels, seed, made)
    variant = config["variant"]
    folder = sweep / f"{variant}-seed{seed}-{settings_digest(config)}"
    _write_hydra(folder, config, levels, seed, made)
    if status == "early":
        return folder
    last = made.iterations if until is None else until
    with mock.patch.object(os, "fsync"), Journal(folder / "journal.jsonl") as journal:
        summary: dict[str, Any] = {
            **{"schema": SCHEMA, "key": "0" * 64, "status": "running", "variant": variant, "seed": seed},
            **{"device": "cpu", "iterations": []},
        }
        run = RunFolder(folder, summary, journal, Nothing(), 1.0, InAccuracy("whole", None), _filter(config))
        run.begin(
            _splits(made),
            name=f"{variant}-tiny-seed{seed}",
            group=sweep.name,
            key="0" * 64,
            config=config,
            versions={"python": "3.11.0", "stasc": "0.0.0", "torch": "2.13.0"},
            machine=MACHINE,
            commit="0123abc",
            data={"train": "1" * 64, "test": "2" * 64},
        )
        for n in range(last + 1):
            for kind in ("initial", "correction", "evaluation"):
                run.stage(kind, "0" * 64, n == 0, n=n, split="test", seconds=1.0, content="0" * 64)
            iteration = _iteration(levels, seed, n, made)
            training = {"loss": 1.0 / n, "steps": 2 + n, "tokens": 100, "examples": 2} if n else None
            run.iteration(iteration, training, {"evaluation": 1.5, "finetune": 2.0})
        if status != "running":
            run.end(status, "iteration 1: FloatingPointError: the loss is nan" if status.startswith("failed") else None)
    return folder


def rewards(levels: Levels, seed: int, n: int, made: Made) -> np.ndarray:
    """Returns whether the answers of M_n are right, (questions, samples, 2). Variants share noise, as real ones do."""
    easy = np.random.default_rng(0).normal(size=(made.questions, 1, 1))
    noise = np.random.default_rng((1, seed)).normal(size=(made.questions, made.samples, 1))
    skill = np.random.default_rng((2, seed, *"-".join(levels.values()).encode())).normal() * made.seed_sd * (n > 0)
    shares = np.clip(made.right(levels, n), 1e-9, 1 - 1e-9)
    limit = np.array([NormalDist(0, 1.25).inv_cdf(share) for share in shares])
    return easy + 0.75 * noise < limit + skill  # type: ignore[no-any-return]


def settings(levels: Levels, seed: int, made: Made) -> dict[str, Any]:
    """Returns the composed settings, as far as the report reads them."""
    groups = tuple((name, level) for name, level in levels.items() if name in _chosen())
    config = copy.deepcopy(_composed(groups))
    single = [f"{name}={level}" for name, level in levels.items() if name not in _chosen()]
    for setting in [*made.settings, *made.edited, *single, f"seed={seed}", f"iterations={made.iterations}"]:
        name, _, value = setting.lstrip("+").partition("=")
        *path, leaf = name.split(".")
        functools.reduce(lambda inner, key: inner.setdefault(key, {}), path, config)[leaf] = _value(value)
    return config


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # 1e-4 is a number in JSON, and text in YAML
        return yaml.safe_load(text)


@cache
def _composed(groups: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Composes conf/ with these options by simple rules, because Hydra takes seconds for dozens of runs."""
    config = dict(_file("config"))
    options = {**_chosen(), **dict(groups)}
    config |= {name: _option(name, option) for name, option in options.items()}
    del config["defaults"]
    del config["hydra"], config["sweep"]
    config = json.loads(re.sub(r"\$\{oc\.env:\w+,'([^']*)'\}", r"\1", json.dumps(config)))
    config = json.loads(re.sub(r"\$\{oc\.select:([\w.]+),null\}", r"${\1}", json.dumps(config)))
    config["variant"] = variant(config)
    return {name: _resolved(value, config) for name, value in config.items()}


def _resolved(value: Any, config: dict[str, Any]) -> Any:
    """Returns the value with `${group.setting}` resolved."""
    if isinstance(value, dict):
        return {name: _resolved(inner, config) for name, inner in value.items()}
    if not isinstance(value, str):
        return value
    look = functools.partial(functools.reduce, lambda inner, key: inner[key])
    if whole := re.fullmatch(r"\$\{([\w.]+)\}", value):
        return look(whole[1].split("."), config)
    return re.sub(r"\$\{([\w.]+)\}", lambda found: str(look(found[1].split("."), config)), value)


@cache
def _chosen() -> dict[str, str]:
    """Returns the default options of the groups that have one."""
    entries = [entry for entry in _file("config")["defaults"] if isinstance(entry, dict)]
    pairs = [(name, option) for entry in entries for name, option in entry.items()]
    whole = ("baseline", "experiment")  # these set values in other groups
    return {name: option for name, option in pairs if name not in whole and not name.startswith("override")}


def _option(group: str, option: str) -> dict[str, Any]:
    content = dict(_file(f"{group}/{option}"))
    below = [name for name in content.pop("defaults", []) if name != "_self_"]
    return functools.reduce(lambda one, name: {**_option(group, name), **one}, below, content)


@cache
def _file(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())  # type: ignore[no-any-return]


def _write_hydra(folder: Path, config: dict[str, Any], levels: Levels, seed: int, made: Made) -> None:
    hidden = folder / ".hydra"
    hidden.mkdir(parents=True)
    choices = _chosen() | {name: level for name, level in levels.items() if name in _chosen()}
    task = [*(f"{name}={level}" for name, level in levels.items()), f"seed={seed}", *made.settings]
    hydra = {"hydra": {"overrides": {"hydra": [], "task": task}, "runtime": {"choices": choices}}}
    (hidden / "hydra.yaml").write_text(json.dumps(hydra))  # JSON is YAML
    (hidden / "config.yaml").write_text(json.dumps(config))
    (hidden / "overrides.yaml").write_text(json.dumps(task))


def _iteration(levels: Levels, seed: int, n: int, made: Made) -> Iteration[None]:
    right = rewards(levels, seed, n, made)
    test = [_pair(made, name, i, 0, right[q, i]) for q, name in enumerate(_asked(made)) for i in range(made.samples)]
    draw = np.random.default_rng((3, seed, n)).random((made.train_questions, 2, 2))
    train = [
        _pair(made, f"{made.data}/train/{q}", i, 0, draw[q, i] < 0.5)
        for q in range(made.train_questions if n else 0)
        for i in range(2)
    ]
    kept = [pair for pair in train if pair.r2 > pair.r1 or (levels.get("filter") == "lenient" and pair.r2 == 1)]
    return Iteration(n, None, train, kept, test)


def _filter(config: dict[str, Any]) -> Strict | Lenient | None:
    """Returns the filter of the settings, if it is one of these two."""
    kind = {"stasc.choices.filter.Strict": Strict, "stasc.choices.filter.Lenient": Lenient}.get(
        config["filter"]["_target_"]
    )
    return kind and kind(**{one.name: config["filter"][one.name] for one in fields(kind)})


def _splits(made: Made) -> list[Split]:
    names = {"train": [f"{made.data}/train/{q}" for q in range(made.train_questions)]}
    names["test"] = _asked(made)
    return [Split(split, tuple(_question(name) for name in asked)) for split, asked in names.items()]


def _asked(made: Made) -> list[str]:
    """Returns the ids of the test questions."""
    if made.facts == 1:
        return [f"{made.data}/{q}" for q in range(made.questions)]
    return [f"{made.data}/{q // made.facts}/{q % made.facts}" for q in range(made.questions)]


def _question(name: str) -> Question:
    return Question(name, f"What is {name}?", ("right",))


def _pair(made: Made, question: str, i: int, k: int, right: np.ndarray) -> Pair:
    words = ("wrong", "right")
    y1, y2 = (Answer(made.answer.format(question=question, word=words[int(one)]), 9) for one in right)
    return Pair(_question(question), i, i, k, y1, y2, float(right[0]), float(right[1]))
