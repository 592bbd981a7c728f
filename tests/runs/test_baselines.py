"""What STaSC is compared with: runs of the same loop and the same evaluation, with other things trained on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_run import CONF, composed, experiment, lines, run_tiny
from test_sweep import stages

from stasc.cli.build import build_experiment
from stasc.runs.prepare import prepare
from stasc.tasks.rewards import normalise

NAMES = sorted(path.stem for path in (CONF / "baseline").glob("*.yaml") if path.stem != "none")
TRAINED = ("gold", "star")


def sampled_for_training(folder: Path) -> set[str]:
    return {stage["kind"] for stage in stages(folder) if stage["split"] == "train"} & {"initial", "correction"}


@pytest.mark.parametrize("name", NAMES)
def test_the_composed_settings_name_the_baseline(name: str) -> None:
    cfg = composed(f"baseline={name}", "finetune=lora")
    assert cfg.baseline == name
    assert cfg.variant == {"self_consistency": "self-consistency"}.get(name, f"{name}-lora")
    assert build_experiment(composed(f"baseline={name}", "model=tiny")).variant == cfg.variant.removesuffix("-lora")


def test_a_run_of_stasc_is_no_baseline() -> None:
    assert composed().baseline is None
    assert composed("baseline=none").variant == "EIE"


def test_star_trains_m_0_on_the_initial_answers_that_are_right(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path / "run", "baseline=star", "iterations=2", "dataset.n_train=6", "sampling.n_init=3")
    assert summary["variant"] == "star"
    pairs = lines(tmp_path / "run" / "pairs.jsonl")
    assert len(pairs) == 2 * 6 * 3
    assert all(pair["y1"] == pair["y2"] and pair["r1"] == pair["r2"] for pair in pairs)
    assert [pair["kept"] for pair in pairs] == [pair["r1"] == 1 for pair in pairs]
    assert {pair["kept"] for pair in pairs} == {True, False}
    assert sampled_for_training(tmp_path / "run") == {"initial"}
    for n in (1, 2):
        entry = summary["iterations"][n]
        assert entry["finetune"]["examples"] == entry["train"]["kept"] == sum(p["kept"] for p in pairs if p["n"] == n)
    steps = prepare(experiment("baseline=star")).steps
    assert len({step.model for step in steps if step.kind == "finetune"}) == 1, "each fine-tuning starts from M_0"


def test_gold_trains_on_the_reference_of_every_question(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path / "run", "baseline=gold", "iterations=2")
    assert summary["variant"] == "gold"
    built = experiment("baseline=gold")
    expected = {question.id: question.references[0] for question in built.train.questions}
    for n in (1, 2):
        pairs = [pair for pair in lines(tmp_path / "run" / "pairs.jsonl") if pair["n"] == n]
        assert {pair["question_id"]: pair["y2"] for pair in pairs} == expected
        assert len(pairs) == 3 and all(pair["kept"] for pair in pairs)
    assert sampled_for_training(tmp_path / "run") == set()
    assert [entry["finetune"] and entry["finetune"]["examples"] for entry in summary["iterations"]] == [None, 3, 3]
    assert summary["iterations"][2]["finetune"]["loss"] < summary["iterations"][1]["finetune"]["loss"], "it goes on"


@pytest.mark.parametrize("prompt", [("prompt=direct",), ("prompt=cot", "reward.scope=final")])
def test_every_gold_answer_earns_the_whole_reward(prompt: tuple[str, ...]) -> None:
    built = experiment("baseline=gold", "dataset.n_train=null", "dataset.n_validation=3", *prompt)
    sample, _ = built.target.stages(lambda *_: pytest.fail("sampled"), lambda *_: pytest.fail("sampled"))
    y1 = sample("M", built.train, 1)
    rewards = [
        built.reward(answer.text, question.references)
        for question, (answer,) in zip(built.train.questions, y1, strict=True)
    ]
    assert len(rewards) > 90 and set(rewards) == {1.0}


@pytest.mark.parametrize("iterations", [0, 3])
def test_self_consistency_trains_nothing_and_votes(iterations: int, tmp_path: Path) -> None:
    given = [
        "baseline=self_consistency",
        f"iterations={iterations}",
        "evaluation.n_init=8",
        "sampling.max_new_tokens=1",
    ]
    summary = run_tiny(tmp_path / "run", *given)
    assert summary["status"] == "finished"
    (entry,) = summary["iterations"]
    outcomes = lines(tmp_path / "run" / "outcomes.jsonl")
    assert Counter(line["question_id"] for line in outcomes) == dict.fromkeys({x["question_id"] for x in outcomes}, 8)
    test = entry["test"]
    assert (test["questions"], test["pairs"], test["samples"]) == (3, 24, 8)
    assert test["vote_k"] == round((test["init_tokens"] + test["corr_tokens"]) / test["init_tokens"]) == 2
    by_question: dict[str, list[dict[str, Any]]] = {}
    for line in outcomes:
        by_question.setdefault(line["question_id"], []).append(line)
    votes = []
    for some in by_question.values():
        assert [line["sample"] for line in some] == list(range(8))
        for i, line in enumerate(some):  # of two, the first counts, unless it says nothing
            other = some[(i + 1) % 8]
            chosen = line if normalise(line["y1"]) or not normalise(other["y1"]) else other
            assert line["vote"] == chosen["r1"]
            votes.append(chosen["r1"])
    assert test["vote_acc"] == pytest.approx(fmean(votes))
    assert test["pass_acc"] == pytest.approx(fmean(max(x["r1"] for x in some) for some in by_question.values()))
    assert test["init_acc"] == pytest.approx(fmean(line["r1"] for line in outcomes))


def test_more_answers_have_the_noise_of_fewer(tmp_path: Path) -> None:
    """The first of several is the one of an ordinary run."""
    run_tiny(tmp_path / "one", "iterations=0")
    run_tiny(tmp_path / "many", "baseline=self_consistency", "evaluation.n_init=3")
    first = [line for line in lines(tmp_path / "many" / "outcomes.jsonl") if line["sample"] == 0]
    for line in first:
        del line["vote"], line["vote_all"]
    assert first == lines(tmp_path / "one" / "outcomes.jsonl")


@pytest.mark.parametrize("name", TRAINED)
def test_a_baseline_is_evaluated_as_stasc_is_and_shares_the_evaluation_of_m_0(name: str, tmp_path: Path) -> None:
    shared = f"store.dir={tmp_path}/shared"
    ordinary = run_tiny(tmp_path / "ordinary", shared, "iterations=1", "filter=all")
    baseline = run_tiny(tmp_path / name, shared, "iterations=1", f"baseline={name}")
    assert baseline["iterations"][0]["test"] == ordinary["iterations"][0]["test"]
    assert baseline["iterations"][1].keys() == ordinary["iterations"][1].keys()
    assert baseline["iterations"][1]["test"].keys() == ordinary["iterations"][1]["test"].keys()
    told = stages(tmp_path / name)
    assert [stage["reused"] for stage in told if stage["n"] == 0] == [True] * 3
    if name == "star":
        (initial,) = [stage for stage in told if (stage["n"], stage["split"], stage["kind"]) == (1, "train", "initial")]
        assert initial["reused"]


@pytest.mark.parametrize("target", ["initial", "gold"])
def test_what_would_never_keep_anything_is_refused(target: str) -> None:
    with pytest.raises(ValueError, match=rf"^filter=strict keeps nothing with target={target}, .*: set filter=lenient"):
        experiment(f"target={target}")
    with pytest.raises(
        ValueError, match=rf"^pairing=crossed pairs corrections, but target={target} samples none: set pairing=own"
    ):
        experiment(f"target={target}", "filter=all", "pairing=crossed")


def test_corrections_of_several_test_answers_are_never_crossed(tmp_path: Path) -> None:
    given = ["pairing=crossed", "iterations=1", "filter=all", "evaluation.n_init=2", "sampling.n_init=2"]
    run_tiny(tmp_path / "run", *given)
    outcomes, pairs = lines(tmp_path / "run" / "outcomes.jsonl"), lines(tmp_path / "run" / "pairs.jsonl")
    assert len(outcomes) == 2 * 3 * 2 and all(line["sample"] == line["seen"] for line in outcomes)
    assert len(pairs) == 3 * 2 * 2 * 2
