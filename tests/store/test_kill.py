"""The same bits on a CPU, from a run that was killed or repeated; and the same answers in other batches and orders."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_lm import results
from test_run import EARNABLE, experiment
from test_sweep import stages
from zygote import MEMORY, Kill, Zygote

from stasc.models.model import M_0
from stasc.records import Question, Split
from stasc.runs import execute as runner
from stasc.runs.prepare import prepare

GIVEN = (
    *("model=tiny", "tracking=off", "hydra.run.dir=run", "iterations=2", "finetune.truncated=keep", *EARNABLE),
    *("dataset.n_train=6", "dataset.n_test=6", "sampling.max_new_tokens=6"),
    *("engine.batch_size=4", "evaluation.batch=2"),  # several batches a stage
    *("finetune.epochs=2", "finetune.batch_size=2"),
)
LORA = ("finetune=lora", "finetune.dropout=0.2")


def phase(stage: dict[str, Any]) -> str:
    if stage["split"] == "test":
        return "evaluation"
    return {"initial": "sampling", "correction": "sampling", "model": "training"}.get(stage["kind"], "between")


def run_whole(command: Zygote, folder: Path, *given: str) -> dict[str, str]:
    """The results of a run that nothing stops."""
    ran = command.run(folder, *GIVEN, *given)
    assert ran.returncode == 0, ran.stderr
    return results(folder / "run")


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_time_ends_with_the_same_bits(command: Zygote) -> None:
    """LoRA with dropout. The kills fall into sampling, training and evaluation alike."""
    chance = random.Random(0)
    fallen: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=MEMORY) as scratch:
        expected = run_whole(command, Path(scratch) / "whole", *LORA)
        assert set(expected) == {"summary", "outcomes.jsonl", "pairs.jsonl", "model/adapter_model.safetensors"}
        told = [stage for stage in stages(Path(scratch) / "whole" / "run") if not stage["reused"]]
        phases = dict(enumerate(map(phase, told)))
        for trial in range(30):
            if fallen.total() - fallen["nowhere"] >= 10 and {"sampling", "training", "evaluation"} <= fallen.keys():
                break
            here = Path(scratch) / str(trial)
            journal = here / "run" / "journal.jsonl"
            aim = ("sampling", "training", "evaluation")[trial % 3]
            into = chance.choice([place for place, name in phases.items() if name == aim])
            after_s = chance.uniform(0, told[into]["seconds"])
            killed = command.run(here, *GIVEN, *LORA, kill=Kill(str(journal), into, after_s))
            if killed.returncode == 0:
                fallen["nowhere"] += 1
                continue
            assert killed.returncode == -9
            done = len(stages(journal.parent))
            fallen[phases.get(done, "end")] += 1
            if trial % 4 == 3:  # the run that goes on is killed as well
                command.run(here, *GIVEN, *LORA, kill=Kill(str(journal), 2 * done + 1, chance.uniform(0, 0.1)))
            ran = command.run(here, *GIVEN, *LORA)
            assert ran.returncode == 0, ran.stderr
            assert results(journal.parent) == expected, (trial, fallen)
            shutil.rmtree(here)
    print(f"kills fell into {dict(fallen)}")
    assert {"sampling", "training", "evaluation"} <= fallen.keys()


@pytest.mark.slow
@pytest.mark.parametrize("finetune", [("finetune=full",), LORA], ids=["full", "lora"])
def test_a_run_that_is_repeated_has_the_same_bits(finetune: tuple[str, ...], command: Zygote, tmp_path: Path) -> None:
    """From stores that are empty, in processes of their own."""
    one, other = (run_whole(command, tmp_path / name, *finetune, "iterations=1") for name in ("one", "other"))
    assert one == other
    assert len(one) == 4
    kinds = [
        [(stage["key"], stage["reused"]) for stage in stages(tmp_path / name / "run")] for name in ("one", "other")
    ]
    assert kinds[0] == kinds[1]


# Other batches, another order


class Sampler:
    """Asks M_0 of a run for initial answers and corrections."""

    def __init__(self, *overrides: str) -> None:
        self._prepared = prepare(experiment(*overrides))

    def __call__(self, questions: list[Question], batch_size: int) -> dict[tuple[str, int, int], tuple[str, str]]:
        """y1 and y2 by question, i and k."""
        split = Split("train", tuple(questions))
        prepared = self._prepared
        stages = replace(runner.stages(prepared), batch={"train": batch_size})
        sampling = stages.sampling["train"]

        def answers(requests: list[Any]) -> list[list[Any]]:
            rows = {}
            for batch in stages.batches(split, requests):
                rows |= zip(batch, stages.answer(M_0, split, requests, batch, lambda k=1: None), strict=True)
            return [[rows[r, s] for s in range(len(request.keys))] for r, request in enumerate(requests)]

        y1 = answers(stages.ask(split, 1))
        y2 = answers(stages.ask_to_correct(split, y1, 1))
        return {
            (question.id, i, k): (y1[q][i].text, y2[q * sampling.n_init + i][k].text)
            for q, question in enumerate(questions)
            for i in range(sampling.n_init)
            for k in range(sampling.n_corr)
        }


def shuffled(questions: list[Question]) -> list[Question]:
    return random.Random(1).sample(questions, k=len(questions))


@pytest.mark.slow
def test_in_float64_each_answer_is_the_same_in_any_batch_and_order() -> None:
    sampler = Sampler("model.path=tiny:0", "model.dtype=float64", "dataset.n_train=8", "sampling.max_new_tokens=8")
    questions = list(sampler._prepared.experiment.train.questions)
    expected = sampler(questions, 1)
    assert len(expected) == 8 * 2 * 2 and len(set(expected.values())) > 30
    for batch_size in (3, 8):
        assert sampler(questions, batch_size) == expected
        assert sampler(shuffled(questions), batch_size) == expected
    assert sampler(shuffled(questions)[:5], 3).items() <= expected.items(), "whatever else is asked"


@pytest.mark.slow
def test_in_float32_999_of_1000_answers_are_the_same_in_any_batch_and_order() -> None:
    sampler = Sampler("dataset.n_train=150", "dataset.n_validation=2", "sampling.n_init=4", "sampling.max_new_tokens=8")
    questions = list(sampler._prepared.experiment.train.questions)
    expected = sampler(questions, 256)
    assert len(expected) == 1200
    found = sampler(shuffled(questions), 48)
    assert sum(found[name] == pair for name, pair in expected.items()) >= 0.999 * len(expected)


@pytest.mark.slow
def test_matched_steps_that_are_killed_begin_anew_and_end_with_the_same_bits(command: Zygote) -> None:
    """In the middle of a fine-tuning, of adapters with dropout."""
    given = (*LORA, "finetune.steps_match=9", "finetune.schedule=cosine")
    with tempfile.TemporaryDirectory(dir=MEMORY) as scratch:
        expected = run_whole(command, Path(scratch) / "whole", *given)
        told = [stage for stage in stages(Path(scratch) / "whole" / "run") if not stage["reused"]]
        into, training = next((place, stage) for place, stage in enumerate(told) if phase(stage) == "training")
        here = Path(scratch) / "killed"
        kill = Kill(str(here / "run" / "journal.jsonl"), into, training["seconds"] / 2)
        assert command.run(here, *GIVEN, *given, kill=kill).returncode == -9
        assert len(stages(here / "run")) == into
        ran = command.run(here, *GIVEN, *given)
        assert ran.returncode == 0, ran.stderr
        assert results(here / "run") == expected
