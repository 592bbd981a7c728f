"""What a run makes of the rows of its data before it samples anything, and of a reward without a key."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_lm import fake_experiment, run_fake, use_fakes
from test_run import composed, experiment

from stasc.cli.build import build_experiment
from stasc.records import Question
from stasc.tracking import read

CASES = [{"question": f"What is {i} plus 1?", "answer": i + 1} for i in range(16)]
SIZES = ("dataset=jsonl", "dataset.n_test=4", "dataset.n_validation=2", "dataset.n_train=null")
SKIP = "dataset.on_bad_row=skip"
OWN = ("~reward", "+reward={_target_: test_questions.own_reward, _partial_: true}")
KEYED = ("~reward", "+reward={_target_: test_questions.keyed_reward, _partial_: true}")


def own_reward(answer: str, references: Sequence[str]) -> float:
    return float(answer in references)


def keyed_reward(answer: str, references: Sequence[str]) -> float:
    return float(answer in references)


keyed_reward.key = str.strip  # type: ignore[attr-defined]


@dataclass
class Picky:
    """A reward of one's own that judges references, and is not hashable."""

    shortest: int

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        return float(answer in references)

    def problem(self, references: Sequence[str]) -> str | None:
        return None if len(references[0]) >= self.shortest else "its reference is too short"


class OwnDataset:
    """One of the user's, which knows nothing of bad rows."""

    def __call__(self, split: str) -> tuple[Question, ...]:
        return tuple(Question(f"{split}/{i}", f"{split} {i}?", (",",)) for i in range(3))


def written(folder: Path, *more: object) -> str:
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*CASES, *more]))
    return f"dataset.path={file}"


@pytest.mark.parametrize("reward", ["in_accuracy", "exact_match", "f1"])
@pytest.mark.parametrize("gold", [",", "!!!", ["...", "?"], "\u200b!"])
def test_a_row_without_a_word_ends_the_run_or_is_left_out(
    reward: str, gold: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, {"question": "Which?", "answer": gold})
    with pytest.raises(
        ValueError, match=r"questions\.jsonl:17: its reference .* has no word, so that no answer can be right"
    ):
        experiment(*SIZES, path, f"reward={reward}")
    found = experiment(*SIZES, path, f"reward={reward}", SKIP)
    assert [len(split.skipped) for split in (found.train, found.test)] == [1, 1]
    assert "Which?" not in {question.text for split in (found.train, found.test) for question in split.questions}
    (told,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert "left out 1 bad row" in told


def test_a_reward_of_ones_own_may_look_for_what_is_no_word(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": "Which?", "answer": ","})
    assert experiment(*SIZES, path, *OWN).train.skipped == {}


def test_a_reward_of_ones_own_may_refuse_references(tmp_path: Path) -> None:
    path = written(tmp_path)
    picky = ("~reward", "+reward={_target_: test_questions.Picky, shortest: 2}")
    with pytest.raises(ValueError, match=r"questions\.jsonl:1: its reference is too short"):
        experiment(*SIZES, path, *picky)
    found = experiment("dataset=jsonl", "dataset.n_test=2", "dataset.n_validation=0", path, *picky, SKIP)
    assert {int(one.references[0]) for split in (found.train, found.test) for one in split.questions} <= {
        *range(10, 17)
    }
    assert len(found.train.skipped) == 9 and all("too short" in why for why in found.train.skipped.values())


def test_a_dataset_of_ones_own_is_held_to_the_reward_too() -> None:
    with pytest.raises(ValueError, match=r"question train/0 \('train 0\?'\): its reference ',' has no word"):
        build_experiment(composed("model=tiny", "~dataset", "+dataset={_target_: test_questions.OwnDataset}"))


def test_rows_with_another_rows_question_are_told_once_and_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    use_fakes(monkeypatch, tmp_path / "base")
    again = [{"question": "what is 3 plus 1", "answer": 4}, {"question": "What is 5 plus 1?", "answer": "six"}]
    given = fake_experiment(*SIZES, written(tmp_path, *again, {"question": "?"}), SKIP, "iterations=0")
    told = [record.getMessage() for record in caplog.records if "another row" in record.getMessage()]
    file = tmp_path / "questions.jsonl"
    assert told == [
        f"dataset: 2 rows with a question that another row has: {file}:17 has the question of {file}:4; "
        f"{file}:18 has the question of {file}:6 (all rows of a question are in the same split)"
    ]
    run_fake(given, tmp_path / "run")
    started = next(event for event in read(tmp_path / "run" / "journal.jsonl") if event["event"] == "run_started")
    sizes = {name: rows.pop("questions") for name, rows in started["rows"].items()}
    assert sizes == {"train": len(given.train.questions), "test": 4}
    assert started["rows"] == {name: {"skipped": 1, "repeated": 2} for name in ("train", "test")}


def test_self_consistency_needs_a_key(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"baseline=self_consistency: the reward has no key, .* an attribute `key`"):
        experiment("baseline=self_consistency", *OWN)
    assert experiment("baseline=self_consistency", *KEYED).evaluation.n_init == 16


@pytest.mark.parametrize("keyed", [False, True])
def test_several_answers_are_voted_on_by_the_key_alone(
    keyed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    use_fakes(monkeypatch, tmp_path / "base")
    given = (*(KEYED if keyed else OWN), "iterations=0", "evaluation.n_init=3", "evaluation.batch=4")
    run_fake(fake_experiment("reward=in_accuracy", *given[2:], given[0], given[1]), tmp_path / "run")
    test = json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"][0]["test"]
    assert ("vote_acc" in test, "vote_all_acc" in test, "pass_acc" in test) == (keyed, keyed, True)
    outcomes = [json.loads(line) for line in (tmp_path / "run" / "outcomes.jsonl").read_text().splitlines()]
    assert all(("vote" in line and "vote_all" in line) is keyed for line in outcomes)
    told = [record.getMessage() for record in caplog.records if "no key" in record.getMessage()]
    assert len(told) == (0 if keyed else 1)
    assert keyed or told[0].startswith("evaluation.n_init=3: the reward has no key, so that nothing tells")
