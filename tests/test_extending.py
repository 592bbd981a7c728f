"""Every part can be one's own: a module with a class or function, a YAML file that names it, and no edit in stasc.

Each test states the two files that it needs, and runs the command in their folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_run import EARNABLE, TINY, lines
from zygote import Zygote

from stasc.tracking import read

SHORT = ("iterations=1", "dataset.n_train=3", "dataset.n_validation=1", "dataset.n_test=2", "sampling.n_init=2")


class Lab:
    """Writes the two files of a part of one's own, and runs with it."""

    def __init__(self, command: Zygote, folder: Path) -> None:
        self.command, self.folder, self.run = command, folder, folder / "run"

    def __call__(self, part: str, module: str, yaml: str, *overrides: str) -> dict[str, Any]:
        """Runs with the option `part`, such as filter/shorter, and returns the summary."""
        group, option = part.split("/")
        (self.folder / "mine.py").write_text(module)
        file = self.folder / "options" / group / f"{option}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(yaml)
        chosen = ("--config-dir", "options", f"{group}={option}", "hydra.run.dir=run")
        self.ran = self.command.run(self.folder, *chosen, *TINY, *SHORT, *overrides)
        assert self.ran.returncode == 0, self.ran.stderr
        summary: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        return summary

    def lines(self, name: str) -> list[dict[str, Any]]:
        return lines(self.run / name)


@pytest.fixture
def lab(command: Zygote, tmp_path: Path) -> Lab:
    return Lab(command, tmp_path)


def test_a_filter_of_the_two_rewards(lab: Lab) -> None:
    module = "def changed(r1, r2):\n    return r1 != r2\n"
    summary = lab("filter/changed", module, "_target_: mine.changed\n_partial_: true\n", *EARNABLE)
    pairs = lab.lines("pairs.jsonl")
    assert [pair["kept"] for pair in pairs] == [pair["r1"] != pair["r2"] for pair in pairs]
    assert {pair["kept"] for pair in pairs} == {True, False}
    assert summary["variant"] == "EchangedE", "an option without a letter is named after its function"


def test_a_filter_of_a_pair(lab: Lab) -> None:
    module = """
from dataclasses import dataclass

@dataclass(frozen=True)
class BetterAndShorter:
    share: float

    def __call__(self, pair):
        return pair.r2 > pair.r1 and len(pair.y2.text) <= self.share * len(pair.y1.text)
"""
    yaml = "_target_: mine.BetterAndShorter\nshare: 1.0\nletter: S\n"
    summary = lab("filter/shorter", module, yaml, *EARNABLE, "sampling.temperature=3", "sampling.max_new_tokens=8")
    pairs = lab.lines("pairs.jsonl")
    better = [pair for pair in pairs if pair["r2"] > pair["r1"]]
    assert [pair["kept"] for pair in better] == [len(pair["y2"]) <= len(pair["y1"]) for pair in better]
    assert {pair["kept"] for pair in better} == {True, False}
    assert not any(pair["kept"] for pair in pairs if pair not in better)
    assert summary["variant"] == "ESE"


def test_a_filter_of_a_pair_is_tried_with_targets_that_have_no_corrections(lab: Lab) -> None:
    module = "def long(pair, least):\n    return pair.r1 == 1 and len(pair.y1.text.split()) >= least\n"
    yaml = "_target_: mine.long\n_partial_: true\nleast: 2\n"
    lab("filter/long", module, yaml, *EARNABLE, "target=initial")
    pairs = lab.lines("pairs.jsonl")
    assert [pair["kept"] for pair in pairs] == [pair["r1"] == 1 and len(pair["y1"].split()) >= 2 for pair in pairs]


def test_a_reward_of_one_answer(lab: Lab) -> None:
    module = "def letters(answer, references):\n    return sum(map(str.isalpha, answer)) / max(1, len(answer))\n"
    lab("reward/letters", module, "_target_: mine.letters\n_partial_: true\n")
    for line in lab.lines("outcomes.jsonl"):
        for answer, reward in ((line["y1"], line["r1"]), (line["y2"], line["r2"])):
            assert reward == sum(map(str.isalpha, answer)) / max(1, len(answer))


BATCHED = """
def longest(answers, references):
    with open("calls", "a") as file:
        print(len(answers), len(references), file=file)
    if "" in answers:
        raise ArithmeticError("an empty answer")
    return [len(answer) / 1000 for answer in answers]
"""


@pytest.mark.parametrize("errors", ["fail", "zero"])
def test_a_reward_of_all_answers_of_a_stage(errors: str, lab: Lab) -> None:
    lab("reward/longest", BATCHED, "_target_: mine.longest\n_partial_: true\n", f"reward_errors={errors}")
    answers = lab.lines("outcomes.jsonl")
    assert all(line["r1"] == len(line["y1"]) / 1000 for line in answers)
    calls = [tuple(map(int, line.split())) for line in (lab.folder / "calls").read_text().splitlines()]
    assert calls == [(4, 4), (18, 18)] + [(4, 4)] * (len(calls) - 2), "2 x (1 + 1), and 3 x (2 + 2 x 2)"


def test_a_dataset_of_questions(lab: Lab) -> None:
    module = """
from stasc.records import Question

def sums(split, n):
    first = {"train": 0, "validation": 1, "test": 2}[split]
    return [Question(f"{a}+1", f"What is {a} + 1?", (str(a + 1),)) for a in range(first, 3 * n, 3)]
"""
    yaml = "_target_: mine.sums\n_partial_: true\nn: 2\n"
    own = [f"~dataset.{name}" for name in ("n_train", "n_validation", "n_test")]  # what the other tests shorten
    lab("dataset/sums", module, yaml + "n_train: null\nn_validation: null\nn_test: null\n", *own)
    assert [line["id"] for line in lab.lines("questions.jsonl")] == ["0+1", "3+1", "2+1", "5+1"]


def test_a_dataset_that_leaves_out_rows(lab: Lab) -> None:
    module = """
from dataclasses import dataclass
from stasc.records import Question, Split

@dataclass(frozen=True)
class Rows:
    n_train: int
    n_validation: int
    n_test: int

    def __call__(self, split, problem):
        rows = {"good": ("yes",), "bad": ("!",)}
        bad = {f"{split}/{name}": why for name, some in rows.items() if (why := problem(some))}
        good = [Question(f"{split}/{name}", f"Is {split} {name}?", some) for name, some in rows.items()]
        return Split(split, tuple(one for one in good if one.id not in bad), bad)
"""
    sizes = "n_train: 1\nn_validation: 1\nn_test: 1\n"
    lab("dataset/rows", module, f"_target_: mine.Rows\n{sizes}")
    assert [line["id"] for line in lab.lines("questions.jsonl")] == ["train/good", "test/good"]
    assert "left out 1 bad row: its reference '!' has no word" in lab.ran.stderr
    started = next(event for event in read(lab.run / "journal.jsonl") if event["event"] == "run_started")
    assert [rows["skipped"] for rows in started["rows"].values()] == [1, 1]


def test_a_prompt(lab: Lab) -> None:
    module = """
class OneTurn:
    def ask(self, question):
        return [{"role": "user", "content": question}]

    def ask_to_correct(self, question, y1):
        with open("asked", "a") as file:
            print(question, file=file)
        return self.ask(f"{question} Someone said {y1!r}. Is that right?")
"""
    lab("prompt/one_turn", module, "_target_: mine.OneTurn\n")
    asked = {line["question"] for line in lab.lines("questions.jsonl")}
    assert asked < {*(lab.folder / "asked").read_text().splitlines()}


def test_an_initialisation(lab: Lab) -> None:
    module = """
class Resampled:
    anew = True

    def __call__(self, m_0, m_prev):
        return m_0
"""
    yaml = "_target_: mine.Resampled\nletter: R\n"
    summary = lab("init/resampled", module, yaml, "filter=all", "iterations=2", "finetune.learning_rate=0.1")
    first, second = ([pair["y1"] for pair in lab.lines("pairs.jsonl") if pair["n"] == n] for n in (1, 2))
    assert first != second, "sampled anew"
    tested = [[line["y1"] for line in lab.lines("outcomes.jsonl") if line["n"] == n] for n in (0, 1, 2)]
    assert tested[0] == tested[1] == tested[2], "by M_0"
    assert summary["variant"] == "RAE"


def test_a_start(lab: Lab) -> None:
    module = "def restart(m_0, m_prev):\n    return m_0\n"
    yaml = "_target_: mine.restart\n_partial_: true\nletter: R\n"
    summary = lab("start/restart", module, yaml, "filter=all", "iterations=2")
    assert (summary["variant"], summary["status"]) == ("EAR", "finished")
    stages = [event for event in read(lab.run / "journal.jsonl") if event["event"] == "stage"]
    descriptions = [event for event in stages if event["kind"] == "finetune"]
    assert len(descriptions) == 2
    given = ("filter=all", "iterations=2", "start=fixed", "hydra.run.dir=ours")
    again = lab.command.run(lab.folder, *TINY, *SHORT, *given)
    assert again.returncode == 0, again.stderr
    ours = [event["key"] for event in read(lab.folder / "ours" / "journal.jsonl") if event.get("kind") == "finetune"]
    assert [event["key"] for event in descriptions] == ours, "both start from M_0"


def test_a_target(lab: Lab) -> None:
    module = """
class Direct:
    trains = corrects = True

    def stages(self, sample, correct):
        return sample, correct

    def example(self, prompt, pair):
        with open("trained", "a") as file:
            print(pair.id, file=file)
        return prompt.ask(pair.question.text), pair.y2
"""
    summary = lab("target/direct", module, "_target_: mine.Direct\n", "filter=all")
    assert summary["variant"] == "EAE-direct"
    trained = {*(lab.folder / "trained").read_text().splitlines()}
    assert len(trained) == summary["iterations"][1]["finetune"]["examples"] == 12


def test_an_engine(lab: Lab) -> None:
    module = """
from stasc.engines.engine import Completion

class FromAList:
    def load(self, model, live):
        self.texts = ["a", "bc"]

    def batches(self, requests, size):
        return [[(r, s)] for r, request in enumerate(requests) for s in range(len(request.keys))]

    def sample(self, requests, batch, decoding, advance):
        advance(len(batch))
        return [Completion((*self.texts[(r + s) % 2].encode(), min(decoding.stop_ids)), False) for r, s in batch]

    def release(self):
        pass
"""
    lab("engine/listed", module, "_target_: mine.FromAList\n", "filter=all")
    answers = [line["y1"] for line in lab.lines("outcomes.jsonl")]
    assert len(answers) == 4 and len({*answers}) == 2


def test_a_fine_tuning_method(lab: Lab) -> None:
    module = """
from dataclasses import dataclass
from stasc.training.methods import Full

@dataclass(frozen=True)
class LastLayers(Full):
    layers: int

    def network(self, live, start, seed):
        network = super().network(live, start, seed)
        network.requires_grad_(False)
        for layer in network.base_model.layers[-self.layers :]:
            layer.requires_grad_(True)
        return network
"""
    yaml = "defaults: [full, _self_]\n_target_: mine.LastLayers\nlayers: 1\nsuffix: -last\n"
    summary = lab("finetune/last", module, yaml, "filter=all")
    assert summary["variant"] == "EAE-last"
    assert summary["iterations"][1]["finetune"]["steps"] > 0


def test_a_loss(lab: Lab) -> None:
    module = """
from dataclasses import dataclass

@dataclass(frozen=True)
class ByReward:
    def __call__(self, logp, step):
        return -logp.weighted([(1 + example.r2) / len(step) for example in logp.examples])
"""
    summary = lab("loss/by_reward", module, "_target_: mine.ByReward\n", "filter=all")
    assert summary["iterations"][1]["finetune"]["steps"] > 0


@pytest.mark.parametrize(
    ("part", "module", "message"),
    [
        (
            "filter",
            "def mine(y1): ...",
            "mine(y1) has the wrong parameters, expected a function of (r1, r2) or (pair)",
        ),
        ("reward", "def mine(answers): ...", "expected a function of (answer, references) or (answers, references)"),
        ("dataset", "def mine(): ...", "expected a function of (split) or (split, problem)"),
        ("init", "def mine(m_0, m_prev): ...", "init: mine has no anew, see stasc.choices.init"),
        (
            "target",
            "class mine: ...",
            "target: mine has no trains, corrects, stages, example, see stasc.choices.target",
        ),
        ("prompt", "class mine: ...", "prompt: mine has no ask, ask_to_correct, see stasc.tasks.prompt"),
    ],
)
def test_a_part_of_another_form_is_refused_before_a_model_is_loaded(
    part: str, module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from omegaconf import OmegaConf

    from stasc.cli.parts import build

    (tmp_path / f"mine_{part}.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    settings: dict[str, object] = {"_target_": f"mine_{part}.mine"}
    if module.startswith("def"):
        settings["_partial_"] = True
    with pytest.raises(ValueError) as raised:
        build(OmegaConf.create({part: settings}), part)
    assert message in str(raised.value)
