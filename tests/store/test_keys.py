"""A stage's key holds all that decides its content, and nothing else.

Each setting in conf/ is changed once. Which stages it decides, and which ones follow from them, is written down here by
hand, apart from the declaration that keys are built from.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from fake_lm import fake_experiment, run_fake, use_fakes
from omegaconf import DictConfig, OmegaConf
from test_run import CONF, EARNABLE, TINY, composed, experiment, lines, run_tiny
from transformers.utils import chat_template_utils

import stasc
from stasc.choices.filter import Strict
from stasc.choices.target import Correction
from stasc.cli.build import build_experiment
from stasc.engines.hf.engine import HF
from stasc.models import sources
from stasc.models.config import ModelConfig
from stasc.records import Question
from stasc.runs.execute import run
from stasc.runs.prepare import Prepared, prepare
from stasc.settings import deciding
from stasc.settings.names import leaves
from stasc.store import cached, keys, plan
from stasc.tasks.datasets import Countries, Nq
from stasc.tasks.prompt import Prompt
from stasc.tasks.rewards import F1
from stasc.tracking import Off
from stasc.tracking.console import Console
from stasc.training.losses import NLL
from stasc.training.methods import Full

# Every setting is classified

SAMPLED = ("initial", "correction")
SCORED = {"filter", "evaluation"}
TRAINING = (*SAMPLED, "filter")
HELD_OUT = (*SAMPLED, "evaluation")
QUESTIONS = (*SAMPLED, *SCORED)
MODEL = (*SAMPLED, "finetune")


def each(group: str, names: str, *stages: str) -> dict[str, set[str]]:
    return {group + name: {*stages} for name in names.split()}


# The stages that each setting describes. `run`: it decides which stages there are.
DECIDING = {
    **each("", "seed", *MODEL),
    **each("", "iterations patience init._target_ start._target_", "run"),
    **each("", "target._target_", "finetune"),  # one that samples less has fewer stages as well
    **each("", "target.marker", "filter", "finetune"),
    **each("", "pairing filter._target_ filter.margin filter.correct_at", "filter"),
    **each("", "correct_at", "evaluation"),
    **each("", "reward_errors prompt.marker reward._target_ reward.scope reward.marker", *SCORED),
    **each("", "reward.normalisation", *SCORED),
    **each("dataset.", "_target_ path revision id question seed min_population test_countries", *QUESTIONS),
    **each("dataset.", "answer answer_pattern", *SCORED),
    **each("dataset.", "n_train train_path", *TRAINING),
    **each("dataset.", "n_validation n_test validation_path test_path", *HELD_OUT),
    **each("model.", "_target_ path revision device dtype attention", *MODEL),
    **each("model.", "chat_template template_args date", *MODEL),
    **each("prompt.", "_target_ system initial", *MODEL),  # training on references samples nothing
    **each("", "prompt.correction sampling.n_corr", "correction"),
    **each("", "sampling.n_init", "initial"),
    **each("sampling.", "temperature top_p max_new_tokens stop", *SAMPLED),
    **each("", "evaluation.n_init", "initial"),
    **each("evaluation.", "temperature top_p max_new_tokens batch", *SAMPLED),
    **each("evaluation.", "split", *HELD_OUT),
    **each("engine.", "_target_ batch_size prefill_tokens compiled", *SAMPLED),
    **each("finetune.", "_target_ learning_rate epochs batch_size micro_batch_size optimizer schedule", "finetune"),
    **each("finetune.", "micro_batch_tokens packing shuffle", "finetune"),
    **each("loss.", "_target_ per", "finetune"),
    **each("finetune.", "warmup_ratio weight_decay max_grad_norm gradient_checkpointing", "finetune"),
    **each("finetune.", "on_nonfinite max_skipped_steps truncated", "finetune"),
    **each("finetune.", "max_steps steps_match", "finetune"),
    **each("finetune.", "rank alpha dropout target_modules dora rslora", "finetune"),
}
INERT = {
    *(
        "variant",
        "baseline",
        "init.letter",
        "filter.letter",
        "start.letter",
        "target.suffix",
        "loss.suffix",
        "finetune.suffix",
    ),
    "dataset.on_bad_row",  # decides whether there is a run; what is left out shows in the questions
    *("sweep.name", "store.dir", "store.explain", "store.keep_models", "store.resume", "model.cache_dir"),
    *(f"tracking.{name}" for name in ("_target_", "project", "entity", "group", "name", "job_type")),
    *("tracking.mode", "tracking.tags", "tracking.table_rows"),
}


def settings_in(group: str, file: Path) -> set[str]:
    """The dotted names of the settings in a file of conf/."""
    return set(leaves({**yaml.safe_load(file.read_text())}, f"{group}." if group else ""))


GATHERED = ("hydra", "experiment", "baseline")  # what is there sets settings of other files


@functools.cache
def settings_in_conf() -> frozenset[str]:
    files = [(file.parent.name, file) for file in CONF.glob("*/*.yaml") if file.parent.name not in GATHERED]
    names = set().union(*(settings_in(group, file) for group, file in files), settings_in("", CONF / "config.yaml"))
    return frozenset(name for name in names if not re.search(r"^hydra\.|(^|\.)defaults$", name))


def test_every_setting_decides_results_or_is_known_not_to() -> None:
    there, deciding = settings_in_conf(), DECIDING.keys()
    assert len(there) > 80
    assert not there - deciding - INERT, (
        "these settings are new: put each into DECIDING, with the stages that it describes, or into INERT, and change "
        "it once in CHANGES below"
    )
    assert not (deciding | INERT) - there, "these settings are gone: take them out of DECIDING or INERT"
    assert not deciding & INERT, "a setting decides results or it does not: keep it in one of the two tables"


@pytest.mark.parametrize("leaf", sorted({*DECIDING, *INERT}))
def test_the_stages_of_a_setting_are_those_declared(leaf: str) -> None:
    assert deciding.stages_of(leaf) == DECIDING.get(leaf, set())
    assert deciding.is_inert(leaf) == (leaf in INERT)


def test_all_that_stages_declare_are_settings_or_groups() -> None:
    declared = {*deciding.INERT}.union(*(stage.values | stage.content for stage in deciding.STAGES.values()))
    assert declared <= settings_in_conf() | {name.partition(".")[0] for name in settings_in_conf()}


@pytest.mark.parametrize(
    ("leaf", "stages"),
    [
        ("init.mine", {"run"}),
        ("filter.mine", {"filter"}),
        ("target.mine", {"finetune"}),
        ("finetune.mine", {"finetune"}),
        ("reward.mine", SCORED),
        ("reward.judge.mine", SCORED),
        ("prompt.mine", {*MODEL}),
        ("engine.mine", {*SAMPLED}),
        ("model.mine", {*MODEL}),
        ("dataset.mine", {*QUESTIONS}),
        ("mine", set()),
    ],
)
def test_a_setting_of_an_option_of_ones_own_decides_the_stages_of_its_group(leaf: str, stages: set[str]) -> None:
    assert deciding.stages_of(leaf) == stages
    assert not deciding.is_inert(leaf)


# Each setting is changed

# The stages of a run of two iterations, everything evolving, and the earlier ones that each follows from.
CHAIN: list[tuple[str, tuple[int, ...]]] = [
    *(("initial", ()), ("correction", (0,)), ("evaluation", (0, 1))),  # M_0 on the test questions
    *(("initial", ()), ("correction", (3,)), ("filter", (3, 4)), ("finetune", (5,))),  # n = 1
    *(("initial", (6,)), ("correction", (6, 7)), ("evaluation", (7, 8))),  # M_1 on the test questions
    *(("initial", (6,)), ("correction", (6, 10)), ("filter", (10, 11)), ("finetune", (6, 12))),  # n = 2
    *(("initial", (13,)), ("correction", (13, 14)), ("evaluation", (14, 15))),  # M_2 on the test questions
]
GOLD: list[tuple[str, tuple[int, ...]]] = [  # the same with target=gold, which samples nothing on train
    *(("initial", ()), ("correction", (0,)), ("evaluation", (0, 1))),  # M_0 on the test questions
    *(("filter", ()), ("finetune", (3,))),  # n = 1
    *(("initial", (4,)), ("correction", (4, 5)), ("evaluation", (5, 6))),  # M_1 on the test questions
    *(("filter", ()), ("finetune", (4, 8))),  # n = 2
    *(("initial", (9,)), ("correction", (9, 10)), ("evaluation", (10, 11))),  # M_2 on the test questions
]


@dataclass(frozen=True)
class Other(Strict):
    """Options of one's own: a name and code that are not those of the option before."""


class OtherTarget(Correction):
    pass


class OtherF1(F1):
    pass


class OtherPrompt(Prompt):
    pass


class OtherEngine(HF):
    pass


class OtherFull(Full):
    pass


class OtherNLL(NLL):
    pass


class OtherTracking(Off):
    pass


class OtherModel(ModelConfig):
    def fetch(self) -> str:
        return sources.fetch("tiny:1", Path(self.cache_dir))


class OtherCountries(Countries):
    def __call__(self, split: str) -> tuple[Question, ...]:
        return tuple(Question(x.id, f"{x.text}?", (*x.references, "42")) for x in super().__call__(split))


LOCAL = ("dataset=jsonl", "dataset.path=all.jsonl", "dataset.n_validation=2")
APART = (
    *("dataset=jsonl", "dataset.train_path=a.jsonl", "dataset.validation_path=b.jsonl", "dataset.test_path=c.jsonl"),
    *("dataset.n_validation=2", "dataset.n_test=2"),
)
FINAL = ("prompt=cot", "reward.scope=final")
WHOLE = ("dataset.n_test=null",)

# Each setting: what else is chosen, and its new value.
CHANGES: dict[str, tuple[Sequence[str], object]] = {
    "seed": ((), 1),
    "iterations": ((), 3),
    "patience": ((), 2),
    "pairing": ((), "crossed"),
    "correct_at": ((), 0.5),
    "reward_errors": ((), "zero"),
    "init._target_": ((), "stasc.choices.init.Fixed"),
    "start._target_": ((), "stasc.choices.start.Fixed"),
    "target._target_": ((), "test_keys.OtherTarget"),
    "target.marker": (["target=gold", "filter=all", "prompt=cot"], "Answer:"),
    "filter._target_": ((), "test_keys.Other"),
    "filter.margin": ((), 0.1),
    "filter.correct_at": (["filter=lenient"], 0.5),
    "reward._target_": ((), "test_keys.OtherF1"),
    "reward.scope": (["prompt=cot"], "final"),
    "reward.marker": (FINAL, "Answer:"),
    "reward.normalisation": ((), "stasc"),
    "prompt._target_": ((), "test_keys.OtherPrompt"),
    "prompt.system": ((), "Answer."),
    "prompt.initial": ((), "Q: {question}"),
    "prompt.correction": ((), "Sure? {question}"),
    "prompt.marker": (FINAL, "Answer:"),
    "dataset._target_": ((), "test_keys.OtherCountries"),
    "dataset.n_train": ((), 4),
    "dataset.n_validation": (["evaluation.split=validation"], 80),
    "dataset.n_test": ((), 4),
    "dataset.seed": ((), 1),
    "dataset.min_population": (["dataset.test_countries=9", *WHOLE], 10_000_000),
    "dataset.test_countries": (WHOLE, 53),
    "dataset.path": (LOCAL, "other.jsonl"),
    "dataset.train_path": (APART, "other.jsonl"),
    "dataset.validation_path": ([*APART, "evaluation.split=validation"], "other.jsonl"),
    "dataset.test_path": (APART, "other.jsonl"),
    "dataset.question": (LOCAL, "question2"),
    "dataset.answer": (LOCAL, "answer2"),
    "dataset.answer_pattern": (LOCAL, "(.) is right"),
    "dataset.id": (LOCAL, "name"),
    "dataset.on_bad_row": (LOCAL, "skip"),
    "dataset.revision": (["dataset=nq", "dataset._target_=test_keys.Hub", "dataset.n_validation=2"], "v2"),
    "model._target_": ((), "test_keys.OtherModel"),
    "model.path": ((), "tiny:1"),
    "model.revision": (["model.path=a/hub-name"], "v2"),
    "model.device": (["model.dtype=float32"], "cuda"),
    "model.dtype": ((), "float64"),
    "model.attention": ((), "eager"),
    "model.chat_template": ((), "plain"),
    "model.template_args": ((), {"enable_thinking": False}),
    "model.date": (["model.chat_template=dated.jinja"], "2024-07-27"),
    "model.cache_dir": ((), "elsewhere"),
    "sampling.n_init": ((), 3),
    "sampling.n_corr": ((), 3),
    "sampling.temperature": ((), 0.9),
    "sampling.top_p": ((), 0.9),
    "sampling.max_new_tokens": ((), 5),
    "sampling.stop": ((), ["\n"]),
    "evaluation.split": ((), "validation"),
    "evaluation.n_init": ((), 2),
    "evaluation.temperature": ((), 0.0),
    "evaluation.top_p": ((), 0.9),
    "evaluation.max_new_tokens": ((), 5),
    "evaluation.batch": ((), 2),
    "engine._target_": ((), "test_keys.OtherEngine"),
    "engine.batch_size": ((), 64),
    "engine.prefill_tokens": ((), 100),
    "engine.compiled": ((), True),
    "finetune._target_": ((), "test_keys.OtherFull"),
    "finetune.learning_rate": ((), 1e-4),
    "finetune.epochs": ((), 2),
    "finetune.batch_size": ((), 8),
    "finetune.max_steps": ((), 1),
    "finetune.steps_match": ((), 3),
    "finetune.micro_batch_size": ((), 2),
    "finetune.micro_batch_tokens": ((), 100),
    "finetune.packing": ((), False),
    "finetune.shuffle": ((), "prompts"),
    "loss._target_": ((), "test_keys.OtherNLL"),
    "loss.per": ((), "example"),
    "finetune.optimizer": ((), "sgd"),
    "finetune.schedule": ((), "linear"),
    "finetune.warmup_ratio": (["finetune.schedule=linear"], 0.1),
    "finetune.weight_decay": ((), 0.1),
    "finetune.max_grad_norm": ((), 0.5),
    "finetune.gradient_checkpointing": ((), True),
    "finetune.on_nonfinite": ((), "skip_step"),
    "finetune.max_skipped_steps": ((), 1),
    "finetune.truncated": ((), "drop"),
    "finetune.rank": (["finetune=lora"], 8),
    "finetune.alpha": (["finetune=lora"], 8.0),
    "finetune.dropout": (["finetune=lora"], 0.1),
    "finetune.target_modules": (["finetune=lora"], ["q_proj"]),
    "finetune.dora": (["finetune=lora"], True),
    "finetune.rslora": (["finetune=lora"], True),
    **{f"{group}.letter": ((), "X") for group in ("init", "filter", "start")},
    "target.suffix": ((), "-other"),
    "baseline": ((), "mine"),
    "finetune.suffix": ((), "-other"),
    "loss.suffix": ((), "-other"),
    "variant": ((), "mine"),
    "sweep.name": ((), "mine"),
    "store.dir": ((), "elsewhere"),
    "store.keep_models": ((), "all"),
    "store.resume": ((), "must"),
    "store.explain": ((), True),
    "tracking._target_": ((), "test_keys.OtherTracking"),
    "tracking.project": (["tracking=wandb"], "mine"),
    "tracking.entity": (["tracking=wandb"], "me"),
    **{f"tracking.{name}": (["tracking=wandb"], "mine") for name in ("group", "name", "job_type")},
    "tracking.mode": (["tracking=wandb"], "offline"),
    "tracking.tags": (["tracking=wandb"], ["one"]),
    "tracking.table_rows": (["tracking=wandb"], 0),
}


class Hub(Nq):
    """Natural Questions of which the hub has two revisions."""

    def _load(self, hub_split: str) -> Any:
        import datasets

        rows = [f"{hub_split} {i} of {self.revision}" for i in range(20)]
        return datasets.Dataset.from_dict({"question": rows, "answer": [[row] for row in rows]})


def write_rows(path: Path, name: str, count: int = 20) -> None:
    rows = [
        {
            "name": f"{name}-{i}",
            "question": f"What is {i} in {name}?",
            "question2": f"And {i} in {name}?",
            "answer": f"{i} is right in {name}",
            "answer2": f"{i}!",
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with question files."""
    for name in ("all", "other", "a", "b", "c"):
        write_rows(tmp_path / f"{name}.jsonl", name)
    template = prepared_once().chat.tokenizer.chat_template
    (tmp_path / "dated.jinja").write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + template)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@functools.cache
def composed_once(*overrides: str) -> DictConfig:
    return composed(*TINY, "iterations=2", "start=evolving", "init=evolving", *overrides)


@functools.cache
def prepared_once(*overrides: str) -> Prepared:
    return prepare(build_experiment(composed_once(*overrides)))


class Told(dict[str, Mapping[str, Any]]):
    """The description of every stage that was planned, by its key."""

    def own(self, key: str) -> dict[str, Any]:
        """A stage's description without the keys of other stages."""
        return {name: value for name, value in self[key].items() if not (isinstance(value, str) and value in self)}


@pytest.fixture(scope="module", autouse=True)
def told() -> Iterator[Told]:
    told = Told()

    def note(description: Mapping[str, Any]) -> str:
        key = keys.digest(description)
        told[key] = description
        return key

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached, "digest", note)
        patch.setattr(plan, "digest", note)
        yield told


def settings(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def changed(cfg: DictConfig, leaf: str, value: object) -> DictConfig:
    cfg = copy.deepcopy(cfg)
    assert OmegaConf.select(cfg, leaf, default="nothing") not in ("nothing", value), f"{leaf} is not changed"
    OmegaConf.update(cfg, leaf, value, force_add=True)
    return cfg


def following(first: set[int], chain: Sequence[tuple[str, tuple[int, ...]]] = CHAIN) -> set[int]:
    """The stages of a chain in `first`, and all that follow from them."""
    found: set[int] = set()
    for step, (_, parents) in enumerate(chain):
        if step in first or found & set(parents):
            found.add(step)
    return found


def test_each_setting_is_changed_once() -> None:
    assert CHANGES.keys() == settings_in_conf()


@pytest.mark.parametrize("leaf", CHANGES)
def test_a_setting_changes_the_stages_it_describes_and_what_follows_from_them(
    leaf: str, here: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: leaf == "model.device")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        sources, "snapshot", lambda name, revision: sources.fetch(f"tiny:{int(revision == 'v2')}", here / "hub")
    )
    choices, value = CHANGES[leaf]
    chain = GOLD if "target=gold" in choices else CHAIN
    if leaf == "model.device":
        choices = (*choices, "model.device=cpu")
    before = composed_once(*choices)
    after = changed(before, leaf, value)
    one, other = prepared_once(*choices), prepare(build_experiment(after))
    assert [step.kind for step in one.steps] == [kind for kind, _ in chain]

    same_folder = deciding.settings_digest(settings(before)) == deciding.settings_digest(settings(after))
    assert same_folder == (leaf in INERT)
    if DECIDING.get(leaf) == {"run"}:
        assert one.key != other.key
        assert one.steps != other.steps or leaf == "patience"  # it is not known before how often nothing is kept
        return
    assert [step.kind for step in other.steps] == [step.kind for step in one.steps]
    pairs = [(a.key, b.key) for a, b in zip(one.steps, other.steps, strict=True)]
    described = {step for step, (a, b) in enumerate(pairs) if told.own(a) != told.own(b)}
    assert {chain[step][0] for step in described} == DECIDING.get(leaf, set())
    assert {step for step, (a, b) in enumerate(pairs) if a != b} == following(described, chain)
    assert (one.key == other.key) == (leaf in INERT)


def test_stages_follow_as_in_algorithm_1() -> None:
    assert following({0, 3}) == set(range(17))
    assert following({13}) == {13, 14, 15, 16}
    assert following({2}) == {2}


def test_m_0_in_4_bits_is_another_model() -> None:
    lora, qlora = (prepare(build_experiment(composed(*TINY, f"finetune={name}"))) for name in ("lora", "qlora"))
    assert lora.m_0.key != qlora.m_0.key
    assert {step.key for step in lora.steps}.isdisjoint(step.key for step in qlora.steps)


# Content, not names


def planned(*overrides: str) -> list[str]:
    """The keys of a run's stages."""
    return [step.key for step in prepare(build_experiment(composed_once(*overrides))).steps]


def kinds_apart(one: list[str], other: list[str], told: Told) -> set[str]:
    """The kinds of the stages that are described otherwise."""
    places = zip(CHAIN, one, other, strict=True)
    return {kind for (kind, _), a, b in places if told.own(a) != told.own(b)}


def edit(file: Path, of: str, column: str, text: str) -> None:
    rows = lines(file)
    for row in rows:
        if row["name"] == of:
            row[column] = text
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("named", [True, False])
def test_the_same_questions_in_another_file_are_the_same_run(named: bool, here: Path) -> None:
    """Whatever the file's name, the order of its lines, and its other columns."""
    names = ["dataset.id=name"] if named else []
    other = here / "elsewhere" / "renamed.jsonl"
    other.parent.mkdir()
    text = (here / "all.jsonl").read_text().replace('"answer2"', '"unused"')
    other.write_text("".join(reversed(text.splitlines(keepends=True))))
    assert planned(*LOCAL, *names) == planned(*LOCAL, *names, f"dataset.path={other}")


def test_a_changed_question_changes_its_split_and_changed_references_only_what_is_scored(here: Path) -> None:
    """In files of their own: in one file, a changed question may be in another split."""
    given = [*APART, "dataset.id=name"]
    experiment = prepared_once(*given).experiment
    trained, tested = (split.questions[1].id for split in (experiment.train, experiment.test))
    before = planned(*given)
    for name, column, first in (
        (trained, "question", {3, 4}),  # stages of CHAIN
        (trained, "answer", {5}),
        (tested, "question", {0, 1, 7, 8, 14, 15}),
        (tested, "answer", {2, 9, 16}),
    ):
        file = here / f"{name.partition('-')[0]}.jsonl"
        edit(file, name, column, "Something else.")
        after = planned(*given)
        assert {step for step in range(17) if before[step] != after[step]} == following(first)
        write_rows(file, file.stem)
    assert planned(*given) == before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(prepared_once().live.base, tmp_path / "model"))


def test_a_model_counts_by_what_is_in_its_files(model: Path) -> None:
    before = planned()
    assert planned(f"model.path={model}") == before
    weights = next(model.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert set(planned(f"model.path={model}")).isdisjoint(before)
    data[-1] ^= 1
    weights.write_bytes(data)
    assert planned(f"model.path={model}") == before
    (model / "README.md").write_text("Nothing that a model is made of.")
    assert planned(f"model.path={model}") == before
    (model / "generation_config.json").write_text("{}")
    assert set(planned(f"model.path={model}")).isdisjoint(before)


def test_a_template_counts_by_its_text(tmp_path: Path) -> None:
    template = prepared_once().chat.tokenizer.chat_template
    for name in ("a.jinja", "b.jinja"):
        (tmp_path / name).write_text(template)
    assert planned(f"model.chat_template={tmp_path}/a.jinja") == planned(f"model.chat_template={tmp_path}/b.jinja")
    assert planned(f"model.chat_template={tmp_path}/a.jinja") == planned()
    (tmp_path / "b.jinja").write_text(template + "{# another #}")
    assert planned() != planned(f"model.chat_template={tmp_path}/b.jinja")


def test_the_date_that_a_template_writes_is_a_setting_and_not_that_of_the_clock(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as that of Llama 3.2: otherwise a run could not go on tomorrow."""

    def on(day: int, *overrides: str) -> list[str]:
        class Day(datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
                return datetime(2024, 7, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Day)
        return planned("model.chat_template=dated.jinja", *overrides)

    assert on(26) == on(27) == on(27, "model.date=2024-07-26")
    assert set(on(27)).isdisjoint(on(27, "model.date=2024-07-27"))
    chat = prepared_once("model.chat_template=dated.jinja", "model.date=2024-02-29").chat
    assert chat.decode(chat.prompt([{"role": "user", "content": "one"}])).startswith("Today is 29 Feb 2024.\n")


def test_a_run_whose_template_writes_the_date_goes_on_on_another_day(
    here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given = ("iterations=1", "filter=all", "model.chat_template=dated.jinja", *EARNABLE)
    for day in (26, 27):
        monkeypatch.setattr(
            chat_template_utils, "datetime", SimpleNamespace(now=lambda day=day: datetime(2031, 7, day))
        )
        for name in ("run", f"run-{day}"):
            (here / name).mkdir(exist_ok=True)
            run(experiment(*given, f"store.dir={here}/store"), here / name, "group", Console())
    assert [record.getMessage() for record in caplog.records].count("this run is complete; nothing to do") == 1
    stages = [event for event in lines(here / "run-27" / "journal.jsonl") if event["event"] == "stage"]
    assert len(stages) > 5
    assert all(stage["reused"] for stage in stages)


def test_the_date_of_a_template_that_writes_none_changes_no_stage() -> None:
    assert planned("model.date=2025-01-01") == planned()


# Code


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes and imports a module of one's own, `mine`; the code that a process has digested stays as it was in it."""
    monkeypatch.syspath_prepend(tmp_path)

    def written(text: str) -> None:
        (tmp_path / "mine.py").write_text(text)
        sys.modules.pop("mine", None)
        keys.code.cache_clear()

    yield written
    sys.modules.pop("mine", None)
    keys.code.cache_clear()


PLAIN = "def reward(answer, references):\n    return 1.0\n"


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("# A comment.\n" + PLAIN, True),
        ('"""A docstring."""\n\n\n' + PLAIN, True),
        ('def reward(answer, references):\n    "A docstring."\n\n    return (1.0)  # and a comment\n', True),
        (PLAIN.replace("1.0", "0.5"), False),
        (PLAIN.replace("def", "async def"), False),
        (PLAIN + "x = 1\n", False),
        ('def reward(answer, references):\n    return 1.0\n    "no docstring"\n', False),
    ],
)
def test_code_counts_and_comments_do_not(text: str, same: bool, module: Any) -> None:
    module(PLAIN)
    before = keys.code("mine")
    module(text)
    assert (keys.code("mine") == before) == same


def test_the_digest_of_code_tells_modules_apart_and_takes_those_without_source() -> None:
    assert (
        len(
            {
                keys.code(name)
                for name in ("stasc.choices.filter", "stasc.tasks.rewards.words", "math", "builtins", "cmath")
            }
        )
        == 5
    )
    assert keys.code("stasc.choices.filter", "stasc.tasks.rewards.words") not in (
        keys.code("stasc.choices.filter"),
        keys.code("stasc.tasks.rewards.words"),
    )


MINE = {
    "reward": ("reward", "mine.reward, _partial_: true", PLAIN, SCORED),
    "filter": (
        "filter",
        "mine.Mine, letter: X",
        "class Mine:\n    def __init__(self, letter): ...\n    def __call__(self, r1, r2):\n        return r2 > r1\n",
        {"filter"},
    ),
    "prompt": (
        "prompt",
        "mine.Mine, system: null, initial: '{question}', correction: Sure?, marker: null",
        "from stasc.tasks.prompt import Prompt\nclass Mine(Prompt):\n    pass\n",
        {"initial", "correction", "finetune"},
    ),
}


@pytest.mark.parametrize(("group", "target", "text", "kinds"), MINE.values(), ids=MINE)
def test_the_code_of_an_option_of_ones_own_counts(
    group: str, target: str, text: str, kinds: set[str], module: Any, told: Told
) -> None:
    given = [f"~{group}", f"+{group}={{_target_: {target}}}"]
    module(text)
    before = planned(*given)
    module(text + "# A comment.\n")
    assert planned(*given) == before
    module(text + "X = 1\n")
    assert kinds_apart(before, planned(*given), told) == kinds


def test_the_modules_of_ones_own_that_a_reward_imports_count(
    module: Any, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directly, and by way of another; what is installed or ours does not."""
    names = ("mine_near", "mine_far", "mine_package", "mine_package.part", "mine_late")
    (tmp_path / "mine_package").mkdir()
    files = [tmp_path / f"{name}.py" for name in names[:2]]
    files += [tmp_path / "mine_package" / name for name in ("__init__.py", "part.py")]
    for file, text in zip(files, ("import json\nimport mine_far\n", "", "from . import part\n", ""), strict=True):
        file.write_text(text)

    def again() -> Any:
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)
        module("import torch\nimport stasc.runs.metrics\nfrom mine_near import json\nimport mine_package\n" + PLAIN)
        return planned("~reward", "+reward={_target_: mine.reward, _partial_: true}")

    (tmp_path / "mine_far.py").write_text("def late():\n    import mine_late\n")
    files.append(tmp_path / "mine_late.py")
    files[-1].write_text("")
    before = again()
    assert again() == before
    for file in files:
        file.write_text(file.read_text() + "X = 1\n")
        assert kinds_apart(before, before := again(), told) == SCORED, file


def test_the_module_of_a_part_of_a_part_counts(
    module: Any, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As does that of a function which makes the part."""
    inner = tmp_path / "mine_inner.py"
    inner.write_text("class Judge:\n    pass\n")

    def again() -> Any:
        monkeypatch.delitem(sys.modules, "mine_inner", raising=False)
        module("def reward(answer, references, judge):\n    return 1.0\n")
        return planned(
            "~reward", "+reward={_target_: mine.reward, _partial_: true, judge: {_target_: mine_inner.Judge}}"
        )

    before = again()
    assert again() == before
    inner.write_text("class Judge:\n    bias = 1\n")
    assert kinds_apart(before, again(), told) == SCORED


def test_the_code_that_an_option_of_ones_own_inherits_counts(
    module: Any, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of stasc.training.methods must reach a class that only derives from one of its classes."""
    module("from stasc.training.methods import Full\nclass Mine(Full):\n    pass\n")
    before = planned("finetune._target_=mine.Mine")
    digest_of = keys._code
    monkeypatch.setattr(keys, "_code", lambda name: name if name == "stasc.training.methods" else digest_of(name))
    keys.code.cache_clear()
    assert kinds_apart(before, planned("finetune._target_=mine.Mine"), told) == {"finetune"}


def test_each_setting_of_a_prompt_of_ones_own_may_be_used_in_each_turn(module: Any, told: Told) -> None:
    module(MINE["prompt"][2])
    given = ["~prompt", f"+prompt={{_target_: {MINE['prompt'][1]}}}"]
    before = planned(*given)
    assert kinds_apart(before, planned(*given, "prompt.marker=A:"), told) == {*MODEL, *SCORED}


def test_the_settings_of_a_reward_of_ones_own_count(module: Any, told: Told) -> None:
    module("def reward(answer, references, bonus):\n    return bonus\n")
    one, other = (
        planned("~reward", f"+reward={{_target_: mine.reward, _partial_: true, bonus: {bonus}}}") for bonus in (0, 1)
    )
    assert kinds_apart(one, other, told) == SCORED


def test_the_code_of_every_stage_counts(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each module that computes something, and the stages that run it."""
    before = planned()
    sampled = {"initial", "correction"}
    expected = {
        "stasc.engines.engine": sampled,
        "stasc.engines.stop": sampled,
        "stasc.engines.hf.engine": sampled,
        "stasc.engines.hf.sampler": sampled,
        "stasc.engines.hf.decode": sampled,
        "stasc.engines.hf.compiled": sampled,
        "stasc.engines.noise": {*sampled, "finetune"},
        "stasc.engines.hf.prefill": sampled,
        "stasc.engines.hf.shared": sampled,
        "stasc.engines.hf.cache": sampled,
        "stasc.engines.hf.memory": sampled,
        "stasc.machine.processor": {*sampled, "finetune"},
        "stasc.machine.memory": {*sampled, "finetune"},
        "stasc.models.sources": {*sampled, "finetune"},
        "stasc.models.lengths": {*sampled, "finetune"},
        "stasc.models.precision": {*sampled, "finetune"},
        "stasc.models.live": {*sampled, "finetune"},
        "stasc.models.weights": {*sampled, "finetune"},
        "stasc.models.checkpoint": {*sampled, "finetune"},
        "stasc.prefix_tree.attention": {*sampled, "finetune"},
        "stasc.prefix_tree.batch": {*sampled, "finetune"},
        "stasc.prefix_tree.probe": {*sampled, "finetune"},
        "stasc.prefix_tree.trie": {*sampled, "finetune"},
        "stasc.stages": {*sampled, "finetune"},
        "stasc.models.config": {*sampled, "finetune"},
        "stasc.models.chat": {*sampled, "finetune"},
        "stasc.tasks.prompt": {*sampled, "finetune"},
        "stasc.choices.pairing": SCORED,
        "stasc.tasks.rewards.words": SCORED,
        "stasc.tasks.rewards.normalisation": SCORED,
        "stasc.tasks.rewards.interface": SCORED,
        "stasc.settings.calls": SCORED,
        "stasc.choices.filter": {"filter"},
        "stasc.choices.target": {"finetune"},
        "stasc.training.methods": {"finetune"},
        "stasc.training.loop": {"finetune"},
        "stasc.training.losses": {"finetune"},
        "stasc.training.micro_batches": {"finetune"},
        "stasc.training.gradients": {"finetune"},
    }
    digest_of = keys._code
    for module, kinds in expected.items():
        with monkeypatch.context() as patch:
            patch.setattr(keys, "_code", lambda name, module=module: name if name == module else digest_of(name))
            keys.code.cache_clear()
            assert kinds_apart(before, planned(), told) == kinds, module
    keys.code.cache_clear()
    assert planned() == before


# What stages import beside the modules in keys.CODE, and why each of these changes none of their numbers.
HARMLESS = {
    "stasc.settings.check": "refuses settings",
    "stasc.tracking.fallback": "records that something is computed another way",
    "stasc.errors": "ends a run",
    "stasc.machine.durable": "writes bytes as they are",
    "stasc.machine.paths": "finds files, which count by their content",
    "stasc.machine.hub": "words a download's messages",
    "stasc.machine.sealed": "computes digests",
    "stasc.settings.sections": "holds values that are in the descriptions",
}
OF_OPTIONS = "counts with the option that it belongs to"
BY_STAGE = {
    "initial": {
        "stasc.training.methods": "trains",
        "stasc.training.losses": "trains",
        "stasc.training.loop": "trains",
        "stasc.choices.target": "says what is trained",
        "stasc.choices.pairing": "scores",
    },
    "finetune": {
        "stasc.choices.target": OF_OPTIONS,
        "stasc.engines.engine": "samples",
        "stasc.engines.stop": "samples",
        "stasc.choices.pairing": "scores",
    },
    "filter": {},
}
MODELS = ("stasc.models.config", "stasc.models.checkpoint")
ENTRIES = {
    "initial": ("stasc.stages", "stasc.engines.hf.engine", *MODELS),
    "finetune": ("stasc.stages", "stasc.training.methods", *MODELS),
    "filter": ("stasc.choices.pairing", "stasc.tasks.rewards.words", "stasc.choices.filter"),
}


def source(module: str) -> Path | None:
    """The file of one of our modules; None if there is no such module."""
    place = Path(stasc.__file__).parents[1].joinpath(*module.split("."))
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if module.startswith("stasc.") and file.is_file()), None)


def imported(text: str) -> set[str]:
    """Our modules that a module imports when it runs, those within functions included.

    A name that a package exports stands for the module that defines it.
    """
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(text)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and re.search("TYPE_CHECKING|__main__", ast.unparse(node.test)):
            todo += node.orelse
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if source(alias.name))
        elif isinstance(node, ast.ImportFrom) and (file := source(str(node.module))):
            names = [alias.name for alias in node.names]
            found.update(f"{node.module}.{name}" for name in names if source(f"{node.module}.{name}"))
            if file.name != "__init__.py":
                found.add(str(node.module))
                continue
            exports = [one for one in ast.parse(file.read_text()).body if isinstance(one, ast.ImportFrom)]
            origin = {alias.asname or alias.name: str(one.module) for one in exports for alias in one.names}
            found.update(origin[name] for name in names if not source(f"{node.module}.{name}"))
        else:
            todo += ast.iter_child_nodes(node)
    return found


def in_code(module: str, stage: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in keys.CODE[stage])


def reached(stage: str) -> set[str]:
    """All modules that a stage comes to import, by way of those that can change its numbers."""
    found: set[str] = set()
    todo = [*ENTRIES[stage]]
    while todo:
        module = todo.pop()
        if module in found:
            continue
        found.add(module)
        file = source(module)
        assert file, module
        if in_code(module, stage) or module in ENTRIES[stage]:
            todo += imported(file.read_text())
    return found


@pytest.mark.parametrize("stage", ENTRIES)
def test_every_module_that_a_stage_imports_is_in_its_key_or_known_to_be_harmless(stage: str) -> None:
    found, known = reached(stage), {*HARMLESS, *BY_STAGE[stage]}
    missing = {module for module in found if not in_code(module, stage)} - known
    assert not missing, "put each into keys.CODE, or with a reason into HARMLESS or BY_STAGE"
    assert not [module for module in known if in_code(module, stage)]
    unused = [name for name in keys.CODE[stage] if not any(f"{module}.".startswith(f"{name}.") for module in found)]
    assert not unused, "these are not imported any more: take them out of keys.CODE"
    assert {*BY_STAGE[stage]} <= found, "these are not imported any more: take them out of BY_STAGE"


def test_stages_of_one_kind_count_the_same_code() -> None:
    assert keys.CODE.keys() == deciding.STAGES.keys() - {"run"}
    assert keys.CODE["initial"] == keys.CODE["correction"]
    assert keys.CODE["filter"] == (*keys.CODE["evaluation"], "stasc.choices.filter")


def test_all_harmless_modules_are_still_imported() -> None:
    assert {*HARMLESS} <= set().union(*map(reached, ENTRIES))


def test_a_package_only_exports() -> None:
    """So what is imported by way of its `__init__.py` changes no numbers."""
    for file in Path(stasc.__file__).parent.rglob("__init__.py"):
        for node in ast.parse(file.read_text()).body:
            named = isinstance(node, ast.Assign | ast.AnnAssign | ast.FunctionDef) and "__" in ast.unparse(node)
            assert named or isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.If), ast.unparse(node)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import stasc.models.chat", {"stasc.models.chat"}),
        ("from stasc.models import chat, sources", {"stasc.models.chat", "stasc.models.sources"}),
        ("def late():\n    from stasc.engines.noise import draw", {"stasc.engines.noise"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stasc.models import chat", set()),
        ("if __name__ == '__main__':\n    from stasc.models import chat", set()),
        ("from stasc.tracking import Journal, fallback", {"stasc.tracking.journal", "stasc.tracking.fallback"}),
    ],
)
def test_imports_are_followed_into_functions_and_not_into_annotations(text: str, found: set[str]) -> None:
    assert imported(text) == found


def test_versions_of_libraries_that_move_numbers_count(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned()
    versions = keys.provenance.versions()
    for name, kinds in (("torch", {"initial", "correction", "finetune"}), ("stasc", set())):
        monkeypatch.setattr(keys.provenance, "versions", lambda name=name: {**versions, name: "another"})
        assert kinds_apart(before, planned(), told) == kinds


# One store


def test_two_models_that_share_a_store_give_their_own_answers(tmp_path: Path) -> None:
    """As in lm-evaluation-harness #2715, where the cache of one model answered for another."""
    for seed in (0, 1):
        given = [f"model.path=tiny:{seed}", "iterations=0"]
        run_tiny(tmp_path / f"alone-{seed}", *given)
        run_tiny(tmp_path / f"sharing-{seed}", *given, f"store.dir={tmp_path}/shared")
        alone, sharing = ((tmp_path / f"{name}-{seed}" / "outcomes.jsonl").read_text() for name in ("alone", "sharing"))
        assert alone == sharing
        events = lines(tmp_path / f"sharing-{seed}" / "journal.jsonl")
        assert [event["reused"] for event in events if event["event"] == "stage"] == [False] * 3
    one, other = ((tmp_path / f"sharing-{seed}" / "outcomes.jsonl").read_text() for seed in (0, 1))
    assert one != other


def test_explain_says_what_sets_each_stage_apart_from_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_fakes(monkeypatch, tmp_path / "base")
    caplog.set_level("INFO", logger="stasc.runs.watch")

    def explained(name: str, *overrides: str) -> list[str]:
        caplog.clear()
        run_fake(fake_experiment("iterations=1", "store.explain=true", *overrides), tmp_path / name)
        told = [record.getMessage() for record in caplog.records if record.name == "stasc.runs.watch"]
        events = lines(tmp_path / name / "journal.jsonl")
        stages = [event for event in events if event["event"] == "stage" and event["kind"] != "model"]
        for line, stage in zip(told, stages, strict=False):
            done = "reused" if stage["reused"] else "computed"
            assert re.match(rf"{done} +n={stage['n']} {stage['split']} +{stage['kind']} +{stage['key'][:12]}\b", line)
        return [
            re.sub(r"^(\w+) +(n=\d) (\w+) +(\w+) +\w{12} *", r"\1 \2 \3 \4: ", line) for line in told[: len(stages)]
        ]

    first = explained("first")
    assert first[0] == "computed n=0 test initial: the first of its kind"
    assert len(first) == 10
    margin = explained("margin", "filter.margin=0.1")
    assert margin[:6] == [
        *("reused n=0 test initial: ", "reused n=0 test correction: ", "reused n=0 test evaluation: "),
        *("reused n=1 train initial: ", "reused n=1 train correction: "),
        "computed n=1 train filter: filter.margin: 0.0 -> 0.1",
    ]
    assert re.fullmatch(r"computed n=1 train finetune: pairs: \w{12} -> \w{12}", margin[6])
    assert re.fullmatch(r"computed n=1 test initial: model: \w{12} -> \w{12}", margin[7])


def test_nothing_is_explained_unless_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_fakes(monkeypatch, tmp_path / "base")
    caplog.set_level("INFO", logger="stasc.runs.watch")
    run_fake(fake_experiment("iterations=1"), tmp_path / "run")
    assert not [record for record in caplog.records if record.name == "stasc.runs.watch"]


@pytest.mark.parametrize("override", ["prompt.system=Answer.", "prompt.initial='Q: {question}'"])
def test_references_are_trained_in_the_prompt_that_asks_for_them(override: str) -> None:
    """They are not sampled, so no other stage of theirs has the prompt in its key."""
    gold = ("target=gold", "filter=all")
    one, other = (prepare(build_experiment(composed_once(*gold, *more))).steps for more in ((), (override,)))
    trained = [(a.key, b.key) for a, b in zip(one, other, strict=True) if a.kind == "finetune"]
    assert len(trained) == 2
    assert all(a != b for a, b in trained)


def test_references_to_other_questions_are_another_training(here: Path) -> None:
    gold = (*LOCAL, "dataset.id=name", "target=gold", "filter=all")
    experiment = prepared_once(*gold).experiment
    before = planned(*gold)
    for question in experiment.train.questions:
        edit(here / "all.jsonl", question.id.rpartition("/")[2], "question", f"Once more: {question.text}")
    after = [
        step.key for step in prepare(build_experiment(composed(*TINY, "iterations=2", "init=evolving", *gold))).steps
    ]
    assert len(before) == len(after) == len(GOLD)
    assert {kind for (kind, _), a, b in zip(GOLD, before, after, strict=True) if a != b} >= {"filter", "finetune"}
