"""What is trained on: which conversation, which answer, and what is sampled for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from test_run import EARNABLE, experiment

from stasc.choices.target import Gold
from stasc.cli.parts import build
from stasc.records import Answer, Keyed, Pair, Question, Split
from stasc.runs import execute as runner
from stasc.runs.prepare import prepare

CONF = Path(__file__).parents[2] / "conf" / "target"
TRAIN = Split("train", (Question("a", "A?", ("Rome", "Roma")), Question("b", "B?", ("2",))))
TEST = Split("test", (Question("t", "T?", ("3",)),))
PAIR = Pair(TRAIN.questions[0], 0, 0, 0, Answer("first", 1), Answer("second", 1), 0.0, 1.0)
ROWS = {  # option: what is sampled for training; the words of the conversation, and the answer that is trained on in it
    "correction": (["initial", "correction"], ["A?", "first", "Sure? A?"], "second"),
    "initial": (["initial"], ["A?"], "first"),
    "gold": ([], ["A?"], "first"),
}


def option(name: str) -> Any:
    settings = OmegaConf.create({"prompt": {"marker": None}, "target": OmegaConf.load(CONF / f"{name}.yaml")})
    return build(settings, "target")


class Lab:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def sample(self, model: str, split: Split, n: int) -> Keyed[list[Answer]]:
        self.calls.append(("initial", split.name))
        return Keyed("y1", [[Answer(f"{question.id}{i}", 1) for i in range(2)] for question in split.questions])

    def correct(self, model: str, split: Split, y1: Any, n: int) -> Keyed[list[list[Answer]]]:
        self.calls.append(("correction", split.name))
        return Keyed("y2", [[[Answer(f"{answer.text}!", 1)] for answer in answers] for answers in y1])


def test_every_option_has_a_row_but_for_the_one_that_trains_nothing() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == {*ROWS, "none"}


@pytest.mark.parametrize("name", ROWS)
def test_only_what_is_trained_on_is_sampled_for_training(name: str) -> None:
    lab = Lab()
    sample, correct = option(name).stages(lab.sample, lab.correct)
    correct("M", TRAIN, sample("M", TRAIN, 1), 1)
    assert lab.calls == [(kind, "train") for kind in ROWS[name][0]]


@pytest.mark.parametrize("name", [*ROWS, "none"])
def test_held_out_questions_are_always_answered_and_corrected(name: str) -> None:
    lab = Lab()
    sample, correct = option(name).stages(lab.sample, lab.correct)
    y1 = sample("M", TEST, 0)
    assert correct("M", TEST, y1, 0) == [[[Answer("t0!", 1)], [Answer("t1!", 1)]]]
    assert lab.calls == [("initial", "test"), ("correction", "test")]


def test_without_corrections_an_initial_answer_is_its_own_correction() -> None:
    lab = Lab()
    sample, correct = option("initial").stages(lab.sample, lab.correct)
    y1 = sample("M", TRAIN, 1)
    y2 = correct("M", TRAIN, y1, 1)
    assert [[[answer.text for answer in k] for k in i] for i in y2] == [[["a0"], ["a1"]], [["b0"], ["b1"]]]
    assert y2.key == y1.key


@pytest.mark.parametrize(
    ("marker", "expected"), [(None, ["Rome", "2"]), ("Final Answer:", ["Final Answer: Rome", "Final Answer: 2"])]
)
def test_gold_is_the_first_reference_after_the_marker_if_there_is_one(marker: str | None, expected: list[str]) -> None:
    lab = Lab()
    sample, correct = Gold(marker).stages(lab.sample, lab.correct)
    y1 = sample("M", TRAIN, 1)
    y2 = correct("M", TRAIN, y1, 1)
    assert [[answer.text for answer in answers] for answers in y1] == [[text] for text in expected]
    assert [[[answer.text for answer in k] for k in i] for i in y2] == [[[text]] for text in expected]


def test_another_reference_is_another_key() -> None:
    keys = set()
    for reference in ("Rome", "Roma"):
        sample, _ = Gold(None).stages(Lab().sample, Lab().correct)
        keys.add(sample("M", Split("train", (Question("a", "A?", (reference,)),)), 1).key)
    assert len(keys) == 2


@pytest.mark.parametrize("name", ROWS)
def test_the_answer_is_trained_on_in_its_own_conversation(name: str) -> None:
    """The tokens, as the tiny model's own tokenizer reads them back."""
    given = [f"target={name}", "filter=all", "prompt.system=null", "prompt.correction='Sure? {question}'"]
    prepared = prepare(experiment(*EARNABLE, *given))
    example = runner.stages(prepared).example(PAIR)
    tokenizer = prepared.chat.tokenizer
    _, turns, answer = ROWS[name]
    assert tokenizer.decode(example.completion, skip_special_tokens=True).strip() == answer
    assert example.completion[-1] in prepared.chat.stop_ids
    prompt = tokenizer.decode(example.prompt, skip_special_tokens=True)
    places = [prompt.find(turn) for turn in turns]
    assert places == sorted(places) and -1 not in places
    assert ("Sure?" in prompt) == (len(turns) == 3)
    assert "second" not in prompt
