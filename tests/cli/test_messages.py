"""The messages for faulty command lines, and the liberties that are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.errors import HydraException

from stasc.cli.arguments import parse
from stasc.cli.build import build_experiment
from stasc.cli.compose import config_loader
from stasc.cli.messages import explain
from stasc.runs.experiment import Experiment

DEBUG = "experiment=debug"


def built(line: str) -> Experiment:
    """Builds the experiment of a command line, as a shell reads it."""
    with config_loader():
        return build_experiment(compose("config", [DEBUG, *parse(shlex.split(line)).settings]))


def said(line: str) -> str:
    """Returns the message for a command line that is refused."""
    try:
        built(line)
    except Exception as error:
        try:
            command = parse(shlex.split(line))
        except ValueError:
            return str(error)
        with config_loader() as loader:
            return explain(error, command, loader) or str(error)
    raise AssertionError(f"{line} was taken")


REFUSED = {
    "filter=Strict": r"filter=Strict: no such option; there are all, lenient, .*; did you mean filter=strict\?",
    "finetune=LoRA": r"finetune=LoRA: no such option; there are full, lora, qlora; did you mean finetune=lora\?",
    "filter=improving": r".*did you mean filter=strict\?",
    "filter=non-decreasing": r".*did you mean filter=lenient\?",
    "tracking=none": r"tracking=none: .*did you mean tracking=off\?",
    "tracking=false": r"tracking=false: .*there are off, wandb; did you mean tracking=off\?",
    "tracking=null": r"tracking=null: .*did you mean tracking=off\?",
    "model=Qwen/Qwen2-0.5B": r".*; a model of the hub, a folder or a \.gguf file: model=custom "
    r"model\.path=Qwen/Qwen2-0\.5B",
    "model=gpt2": r".*: model=custom model\.path=gpt2",
    "model=smollm2": r".*did you mean model=smollm2_\w+\? Or a model of the hub.*model\.path=smollm2",
    "dataset=gsm8k": r".*: dataset=jsonl dataset\.path=FILE\.jsonl "
    + re.escape(r"""'dataset.answer_pattern="####\s*(.+)$"'"""),
    "dataset=squad": r".*: dataset=jsonl dataset\.path=FILE\.jsonl",
    "dataset=data.jsonl": r".*: dataset=countries, jsonl, nq|.* is given as dataset=jsonl dataset\.path=data\.jsonl",
    "dataset=folder/data.json": r".* is given as dataset=jsonl dataset\.path=folder/data\.json",
    "dataset.path=data.jsonl": r"dataset\.path belongs to dataset=jsonl and dataset=nq: "
    r"give dataset=jsonl dataset\.path=data\.jsonl",
    "dataset.test_path=x": r"dataset\.test_path belongs to dataset=jsonl: give dataset=jsonl dataset\.test_path=x",
    "finetune.rank=8": r"finetune\.rank belongs to finetune=lora and finetune=qlora: "
    r"give finetune=lora finetune\.rank=8",
    "+finetune.rank=8": r"finetune\.rank belongs to finetune=lora",
    "filter=all filter.margin=0.1": r"filter\.margin belongs to filter=lenient and filter=strict: "
    r"give filter=lenient filter\.margin=0\.1",
    "tracking.project=x": r"tracking\.project belongs to tracking=wandb: give tracking=wandb tracking\.project=x",
    "finetune.lr=1e-4": r"finetune\.lr: no such setting; did you mean finetune\.learning_rate\?",
    "+finetune.lr=1e-4": r"finetune\.lr: .*did you mean finetune\.learning_rate\?",
    "finetune.loss_per=example": r"finetune\.loss_per: no such setting; did you mean loss\.per\?",
    "lr=1e-4": r"lr: no such setting; did you mean finetune\.learning_rate\?",
    "+lr=1e-4": r"lr: no such setting; did you mean finetune\.learning_rate\?",
    "batch_size=4": r"batch_size: no such setting; did you mean engine\.batch_size or finetune\.batch_size\?",
    "temperature=1": r"temperature: .*did you mean (sampling|evaluation)\.temperature or \w+\.temperature\?",
    "max_tokens=4": r"max_tokens: .*did you mean sampling\.max_new_tokens\?",
    "num_train_epochs=1": r"num_train_epochs: .*did you mean finetune\.epochs\?",
    "top_k=5": r"top_k: no such setting; sampling\.top_p truncates the distribution",
    "output_dir=x": r"output_dir: no such setting; did you mean hydra\.run\.dir\?",
    "wandb=off": r"wandb: no such setting; W&B is tracking=wandb or tracking=off",
    "filters=strict": r"filters: no such setting; did you mean filter=strict\?",
    "hydra.run.dirr=x": r"hydra\.run\.dirr: no such setting; did you mean hydra\.run\.dir\?",
    "seed": r"seed: expected NAME=VALUE, without spaces around the =",
    "seed =1": r"seed: expected NAME=VALUE, without spaces around the =",
    "+seed=1": r"seed is a setting already: give seed=\.\.\., without the \+",
    "seed=0,1": r"seed=0,1: several values make a sweep: add --multirun",
    "seed=range(0,3)": r"seed=range\(0,3\): several values make a sweep: add --multirun",
    "filter=strict,lenient": r"filter=strict,lenient: several values make a sweep: add --multirun",
    "filter=[strict,lenient]": r"filter=\[strict,lenient\]: a run has one option .*--multirun filter=strict,lenient",
    "'prompt.system=Yes, or no'": r""".*add --multirun; .*a text with commas "prompt\.system='Yes, or no'\"""",
    "'prompt.initial=Q: {question}'": r""".*two pairs of quotes: "prompt\.initial='Q: \{question\}'\"""",
    '"prompt.system=Don\'t explain"': r""".*two pairs of quotes: "prompt\.system='Don\\'t explain'\"""",
    """ "prompt.initial='{{ question }}'" """: r""".*contain \{question\}.*one pair of braces.*"prompt\.initial='""",
    r""" 'prompt.initial="${x} {question}"' """: r"prompt\.initial: .*'x' not found; a \$\{ that is text",
    "experiment=debug experiment=ablation": r"experiment=debug experiment=ablation: an experiment is chosen once",
    "--experiment=debug": r"--experiment=debug: no such option .*; .* without dashes: experiment=debug",
    "eperiment=debug": r"eperiment: no such setting; did you mean experiment=debug\?",
    "sampling.stop=3": r"sampling\.stop=3: expected a list, such as \[a, b\]",
    "'sampling.stop={a: 1}'": r"sampling\.stop=.*: expected a list, such as \[a, b\]",
    "model.template_args=3": r"model\.template_args=3: expected a mapping, such as \{name: value\}",
    "--seed=1": r"--seed=1: no such option .*; a setting is given without dashes: seed=1",
    "--max-new-tokens 5": r"--max-new-tokens: .*without dashes: max_new_tokens=5",
    "--multirum": r"--multirum: no such option \(--help lists them\)",
    "'reward={_target_: mine.f, _partial_: true}'": r"reward=.*: a part of yours .* is given as '~reward' "
    r"'\+reward=\{_target_: mine\.f, _partial_: true\}'",
    "reward=mine.f": r".*a function of yours is given as '~reward' '\+reward=\{_target_: mine\.f, _partial_: true\}'",
    "reward=mine.py": r".*'\+reward=\{_target_: mine\.FUNCTION, _partial_: true\}'",
    "filter=mine": r".*one of yours is filter/mine\.yaml in a folder named with --config-dir",
    "'~filter' '+filter={_target_: test_messages.keep, letter: K}'": r"filter: keep\(r1.*add _partial_: true",
    "'~start' '+start={_target_: test_messages.first, letter: K}'": r"start: first\(m_0.*add _partial_: true",
    "seed=1.5": r"seed: Value '1\.5' of type 'float' could not be converted to Integer",
    "finetune.packing=maybe": r"finetune\.packing: Value 'maybe' is not a valid bool",
}


def keep(r1: float, r2: float) -> bool:
    return r2 >= r1


def first(m_0: Any, m_prev: Any) -> Any:
    return m_0


@pytest.mark.parametrize(("line", "expected"), REFUSED.items(), ids=REFUSED)
def test_a_wrong_setting_is_one_line_that_says_what_to_give(line: str, expected: str) -> None:
    told = said(line)
    assert re.match(expected, told), told
    assert "\n" not in told


def test_a_filter_of_ones_own_has_the_letter_that_it_is_given() -> None:
    experiment = built("'~filter' '+filter={_target_: test_messages.keep, _partial_: true}' +filter.letter=K")
    assert experiment.variant == "EKE"


def test_an_option_of_ones_own_without_a_letter_is_named_after_its_function() -> None:
    assert built("'~filter' '+filter={_target_: test_messages.keep, _partial_: true}'").variant == "EkeepE"


@pytest.mark.parametrize(
    "line",
    [
        "'model.template_args={enable_thinking: false}'",
        "model.template_args.enable_thinking=false",
        "+model.template_args.enable_thinking=false",
    ],
)
def test_arguments_of_the_template_need_no_plus(line: str) -> None:
    assert built(line).model.template_args == {"enable_thinking": False}


@pytest.mark.parametrize("given", ["all-linear", "[all-linear]"])
def test_a_text_where_a_list_belongs_is_a_list_of_it_in_the_key_too(given: str) -> None:
    experiment = built(f"finetune=lora finetune.target_modules={given} tracking=wandb tracking.tags=mine")
    assert experiment.finetune.target_modules == ["all-linear"]  # type: ignore[union-attr]
    assert experiment.settings["finetune"]["target_modules"] == ["all-linear"]
    assert experiment.tracking.tags == ["mine"]  # type: ignore[union-attr]


def test_braces_other_than_a_questions_are_text() -> None:
    prompt = built(r""" 'prompt.initial="{question} as \boxed{x}, {{y}} and \${z}"' """).prompt
    assert prompt.ask("Why?")[-1]["content"] == r"Why? as \boxed{x}, {{y}} and ${z}"


def test_a_setting_of_an_option_in_the_users_folder_belongs_to_it(tmp_path: Path) -> None:
    (tmp_path / "filter").mkdir()
    (tmp_path / "filter" / "mine.yaml").write_text("_target_: mine.keep\nletter: K\ndepth: 1\n")
    command = parse(["--config-dir", str(tmp_path), "filter.depth=2"])
    with config_loader() as loader:
        with pytest.raises(HydraException) as raised:
            compose("config", list(command.settings))
        told = explain(raised.value, command, loader)
    assert told == "filter.depth belongs to filter=mine: give filter=mine filter.depth=2"
