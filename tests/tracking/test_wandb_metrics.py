"""The names and numbers that Weights & Biases gets, worked out by hand."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tracked import info_of, lines_of, outcomes_of, step_of

from stasc.tracking import metrics

ZERO: dict[str, Any] = {
    "n": 0,
    "test": {
        **{"questions": 8, "pairs": 8, "init_acc": 0.5, "corr_acc": 0.25, "right_right": 0.125, "right_wrong": 0.375},
        **{"wrong_right": 0.12, "wrong_wrong": 0.38, "init_reward": 0.51, "corr_reward": 0.26},
        **{"init_truncated": 0.01, "init_empty": 0.02, "init_tokens": 31.0, "corr_truncated": 0.03, "corr_empty": 0.04},
        **{"corr_tokens": 41.0, "corr_not_asked": 0.05, "init_unmarked": 0.06, "corr_unmarked": 0.07},
    },
    "train": None,
    "finetune": None,
    "seconds": {"evaluation": 3.0, "loading": 100.0, "total": 1000.0},
    "reused": 1,
}
ONE: dict[str, Any] = {
    "n": 1,
    "test": {**ZERO["test"], "init_acc": 0.625, "corr_acc": 0.875}
    | {"samples": 16, "vote_k": 2.0, "vote_acc": 0.7, "vote_all_acc": 0.8, "pass_acc": 0.9},
    "train": {
        **{"questions": 5, "pairs": 20, "init_acc": 0.31, "corr_acc": 0.32, "right_right": 0.33, "right_wrong": 0.34},
        **{"wrong_right": 0.35, "wrong_wrong": 0.36, "init_reward": 0.37, "corr_reward": 0.39, "corr_tokens": 42.0},
        **{"kept": 6, "left_out_truncated": 2, "left_out_too_long": 4},
    },
    "finetune": {"loss": 1.25, "steps": 3, "tokens": 99, "examples": 7, "skipped": 9, "micro_batch_tokens": 64},
    "seconds": {"initial": 1.0, "correction": 2.0, "filter": 0.25, "finetune": 4.0, "evaluation": 5.0}
    | {"loading": 200.0, "total": 2000.0},
    "reused": 10,
}
ACCURACIES = {"accuracy/initial": 0.625, "accuracy/correction": 0.875}
GAINS = {"accuracy/gain": 0.25, "accuracy/over_M0_initial": 0.375, "accuracy/over_M0_correction": 0.625}
VOTES = {"accuracy/vote": 0.7, "accuracy/vote_all": 0.8, "accuracy/pass_at_k": 0.9}


def test_a_row_has_each_number_of_an_iteration_once_under_its_name() -> None:
    assert metrics.iteration_row(ONE, ZERO) == {
        "iteration": 1,
        **{**ACCURACIES, **GAINS, **VOTES},
        **{"corrections/right_to_right": 0.125, "corrections/right_to_wrong": 0.375},
        **{"corrections/wrong_to_right": 0.12, "corrections/wrong_to_wrong": 0.38},
        **{"rewards/initial": 0.51, "rewards/correction": 0.26},
        **{"answers/questions": 8, "answers/pairs": 8, "answers/samples": 16, "answers/vote_k": 2.0},
        **{"answers/initial_truncated": 0.01, "answers/initial_empty": 0.02, "answers/initial_tokens": 31.0},
        **{"answers/correction_truncated": 0.03, "answers/correction_empty": 0.04, "answers/correction_tokens": 41.0},
        **{"answers/correction_not_asked": 0.05, "answers/initial_unmarked": 0.06, "answers/correction_unmarked": 0.07},
        **{"filter/pairs": 20, "filter/kept": 6, "filter/kept_share": 0.3},
        **{"filter/left_out_truncated": 2, "filter/left_out_too_long": 4},
        **{"samples/initial_accuracy": 0.31, "samples/correction_accuracy": 0.32, "samples/questions": 5},
        **{"samples/right_to_right": 0.33, "samples/right_to_wrong": 0.34, "samples/wrong_to_right": 0.35},
        **{"samples/wrong_to_wrong": 0.36, "samples/initial_reward": 0.37, "samples/correction_reward": 0.39},
        "samples/correction_tokens": 42.0,
        **{"finetune/loss": 1.25, "finetune/steps": 3, "finetune/tokens": 99, "finetune/examples": 7},
        **{"finetune/skipped": 9, "finetune/micro_batch_tokens": 64},
        **{"time/initial": 1.0, "time/correction": 2.0, "time/filter": 0.25, "time/finetune": 4.0},
        **{"time/evaluation": 5.0, "time/loading": 200.0, "time/elapsed": 2000.0},
        **{"time/total": 12.25, "time/reused_stages": 10},
    }


def test_no_number_of_an_iteration_is_left_out_or_shadows_another() -> None:
    """Each of them gets a value of its own."""
    entry, mine = copy.deepcopy(ONE), []
    for part in ("test", "train", "finetune", "seconds"):
        for name in entry[part]:
            mine.append(10_000.5 + len(mine))
            entry[part][name] = mine[-1]
    counted = Counter(metrics.iteration_row(entry, ZERO).values())
    assert {value: counted[value] for value in mine} == dict.fromkeys(mine, 1)


def test_the_row_of_m_0_has_nothing_of_a_training() -> None:
    row = metrics.iteration_row(ZERO, ZERO)
    assert not [name for name in row if name.startswith(("filter/", "samples/", "finetune/", "time/finetune"))]
    assert (row["accuracy/gain"], row["accuracy/over_M0_initial"], row["accuracy/over_M0_correction"]) == (
        -0.25,
    ) * 2 + (0.0,)


def test_an_entry_of_an_earlier_version_counts_no_reused_stage() -> None:
    old = {name: value for name, value in ONE.items() if name != "reused"}
    assert metrics.iteration_row(old, ZERO)["time/reused_stages"] == 0


def test_optimizer_steps_are_counted_over_iterations_and_rows_have_fixed_numbers() -> None:
    counter, numbers, rows = metrics.StepCounter(), [], []
    given = {1: [(2.0, 100, 0.5), (1.5, 50, 1.0)], 2: [(1.0, 80, 1.0)], 3: [], 4: [(0.5, 10, 2.0)]}
    for n in range(5):
        for loss, tokens, epoch in given.get(n, []):
            number, row = counter.row(n, step_of(loss, input_tokens=tokens, epoch=epoch, seconds=4.0))
            numbers.append(number)
            rows.append(row)
        numbers.append(counter.iteration(n))
    # M_0, a table; 2 steps, n=1, a table; 1 step, n=2, a table; n=3, a table; 1 step, n=4
    assert numbers == [0, 2, 3, 4, 6, 7, 9, 11, 12]
    names = ("global_step", "loss", "tokens_per_second", "num_input_tokens_seen", "epoch")
    assert [tuple(row[f"train/{name}"] for name in names) for row in rows] == [
        (1, 2.0, 25.0, 100, 0.5),
        (2, 1.5, 12.5, 150, 1.0),
        (3, 1.0, 20.0, 230, 2.0),
        (4, 0.5, 2.5, 240, 4.0),
    ]
    assert {(row["train/learning_rate"], row["train/grad_norm"]) for row in rows} == {(1e-4, 0.5)}


def test_a_loss_that_is_not_finite_is_left_out_and_no_time_is_no_speed() -> None:
    _, row = metrics.StepCounter().row(1, step_of(None, grad_norm=None, seconds=0.0))
    assert row["train/global_step"] == 1 and row["train/tokens_per_second"] == 0
    assert not {"train/loss", "train/grad_norm"} & row.keys()


FINISHED = {
    **{"final/iteration": 1, "final/initial": 0.625, "final/correction": 0.875, "final/gain": 0.25},
    **{"final/over_M0_initial": 0.375, "final/over_M0_correction": 0.625},
    **{"final/vote": 0.7, "final/vote_all": 0.8, "final/pass_at_k": 0.9},
}
TOTALS = {"total/kept": 6, "total/steps": 3, "total/tokens": 99, "total/seconds": 15.25}


@pytest.mark.parametrize("status", ["finished", "stopped_empty"])
def test_the_results_of_a_complete_run_are_final(status: str) -> None:
    assert metrics.summary(status, None, [ZERO, ONE]) == {"status": status, **FINISHED, **TOTALS}


@pytest.mark.parametrize("status", ["failed", "failed_nonfinite", "interrupted"])
def test_the_results_of_an_incomplete_run_are_its_last_and_beside_its_error(status: str) -> None:
    last = {name.replace("final/", "last/"): value for name, value in FINISHED.items()}
    assert metrics.summary(status, "gone", [ZERO, ONE]) == {"status": status, "error": "gone", **last, **TOTALS}


def test_totals_are_sums_over_iterations_of_which_some_trained_nothing() -> None:
    idle = {**ONE, "train": {**ONE["train"], "kept": 0}, "finetune": None}
    found = metrics.summary("finished", None, [ZERO, ONE, idle, ONE])
    assert {name: value for name, value in found.items() if name.startswith("total/")} == {
        **{"total/kept": 12, "total/steps": 6, "total/tokens": 198, "total/seconds": 39.75}
    }


def test_a_run_that_failed_before_any_iteration_has_only_its_error() -> None:
    assert metrics.summary("failed", "gone", []) == {"status": "failed", "error": "gone"}


@pytest.mark.parametrize("name", metrics.IF_VARYING)
def test_a_metric_that_may_be_constant_gets_a_chart_only_if_it_varies(name: str) -> None:
    assert not metrics.informative(name, {name: 0.25}, {name: 0.25})
    assert metrics.informative(name, {name: 0.5}, {name: 0.25})


def test_rewards_get_a_chart_only_if_they_are_graded() -> None:
    for reward, shown in ((0.5, False), (0.75, True)):
        row = {"rewards/initial": reward, "accuracy/initial": 0.5, "rewards/correction": 0.0}
        assert metrics.informative("rewards/initial", row, row) is shown
        assert metrics.informative("rewards/correction", {**row, "accuracy/correction": 0.0}, row) is False


def test_counts_get_no_chart_and_results_always_do() -> None:
    row = metrics.iteration_row(ONE, ZERO)
    shown = {name for name in row if metrics.informative(name, row, row)}
    assert shown == {
        *ACCURACIES,
        *GAINS,
        *VOTES,
        *(f"corrections/{a}_to_{b}" for a in ("right", "wrong") for b in ("right", "wrong")),
        *("rewards/initial", "rewards/correction"),  # graded here
        *("filter/kept", "filter/kept_share", "samples/initial_accuracy", "samples/correction_accuracy"),
        *("answers/initial_tokens", "answers/correction_tokens"),
        *(f"time/{name}" for name in ("initial", "correction", "filter", "finetune", "evaluation", "total")),
    }


CONFIG = {
    "init": {"_target_": "stasc.choices.init.Fixed", "letter": "F", "margin": 0.5},
    "finetune": {"_target_": "x", "suffix": "", "learning_rate": 1e-5, "schedule": {"_partial_": True, "warmup": 0.1}},
    "iterations": 3,
    "seed": 3,
    "model": {"path": "a/b", "cache_dir": "/home/me"},
    "store": {"dir": "/home/me/store"},
    "tracking": {"_target_": "stasc.tracking.Wandb", "project": "stasc"},
    "sweep": {"name": "ablation"},
}
PLAIN = {
    "init": {"margin": 0.5},
    "finetune": {"learning_rate": 1e-5, "schedule": {"warmup": 0.1}},
    "iterations": 3,
    "seed": 3,
    "model": {"path": "a/b"},
    "variant": "EIE",
    "commit": "0123abc",
    "device": "cpu",
    "versions": {"python": "3.11.0"},
}
CHOICES = {"init": "fixed", "filter": "strict", "start": "evolving", "target": "correction", "finetune": "lora"}


def test_the_config_has_nested_settings_without_classes_and_places(tmp_path: Path) -> None:
    before = copy.deepcopy(CONFIG)
    info = info_of(tmp_path, config={**CONFIG, "baseline": None}, choices={**CHOICES, "model": "tiny"})
    assert metrics.settings(info) == {
        **PLAIN,
        "baseline": None,
        "choice/baseline": "none",
        **{f"choice/{name}": option for name, option in CHOICES.items()},
        "choice/model": "tiny",
    }
    assert before == CONFIG, "the run's own settings are left alone"


def test_a_baseline_counts_for_no_option_of_a_design_choice(tmp_path: Path) -> None:
    config = {**CONFIG, "baseline": "gold"}
    info = info_of(tmp_path, config=config, choices={**CHOICES, "model": "tiny", "dataset": "synthetic"})
    choices = {"choice/baseline": "gold", "choice/model": "tiny", "choice/dataset": "synthetic"}
    assert metrics.settings(info) == {**PLAIN, "baseline": "gold", **choices}


def test_the_test_table_has_the_same_questions_in_each_iteration(tmp_path: Path) -> None:
    info = info_of(tmp_path, references={"q2": ("two", "2")})
    asked = {n: [row[1] for row in metrics.test_rows(info, outcomes_of(range(10), n, samples=3), 4)] for n in range(3)}
    assert asked[0] == asked[1] == asked[2] == [f"Question {q}?" for q in (0, 2, 5, 7)]
    rows = [*metrics.test_rows(info, outcomes_of(range(10), 7, samples=3), 4)]
    assert rows[1] == [7, "Question 2?", "two | 2", "first 0", "second 0", 1.0, 0.5, "right → wrong"]
    assert rows[0][2] == "", "no reference is known"
    assert len(rows[0]) == len(metrics.TEST_COLUMNS)


@pytest.mark.parametrize(
    ("correct_at", "transition"), [(1.0, "right → wrong"), (0.5, "right → right"), (1.5, "wrong → wrong")]
)
def test_an_answer_is_right_if_its_reward_is_at_least_correct_at(
    correct_at: float, transition: str, tmp_path: Path
) -> None:
    (row,) = metrics.test_rows(info_of(tmp_path, correct_at=correct_at), outcomes_of([1]), 1)
    assert row[-1] == transition


@pytest.mark.parametrize(
    ("kept", "count", "shown"),
    [
        (range(6), 4, [(0, True), (3, True), (6, False), (8, False)]),
        (range(6), 5, [(0, True), (2, True), (4, True), (6, False), (8, False)]),
        (range(1), 4, [(0, True), (1, False), (4, False), (7, False)]),
        (range(9), 4, [(0, True), (3, True), (6, True), (9, False)]),
        (range(10), 2, [(0, True), (5, True)]),
        ((), 2, [(0, False), (5, False)]),
        (range(6), 1, [(0, True)]),
        (range(6), 0, []),
        (range(6), 99, [(k, k < 6) for k in range(10)]),
    ],
    ids=[
        *("half and half", "one more kept", "few kept", "few dropped", "all kept", "none kept"),
        *("one", "no rows", "all rows"),
    ],
)
def test_the_pairs_table_is_half_of_kept_pairs_if_there_are_enough(
    kept: range, count: int, shown: list[tuple[int, bool]], tmp_path: Path
) -> None:
    rows = [*metrics.pair_rows(info_of(tmp_path), lines_of(10, kept, n=2), count)]
    assert rows == [
        [2, "Capital of Peru?", "Lima", "Quito", f"Lima {k}", 0.0, 1.0, "wrong → right", mine, "" if mine else "full"]
        for k, mine in shown
    ]
    assert {len(row) for row in rows} <= {len(metrics.PAIR_COLUMNS)}


def test_lines_of_schema_1_name_a_question_by_its_id(tmp_path: Path) -> None:
    old = [
        {**{name: value for name, value in line.items() if name not in ("question_id", "dropped")}, "question": "q1"}
        for line in lines_of(1)
    ]
    (row,) = metrics.pair_rows(info_of(tmp_path), old, 5)
    assert row == [1, "q1", "Lima", "Quito", "Lima 0", 0.0, 1.0, "wrong → right", False, ""]


def test_what_is_spread_is_in_order_and_never_twice() -> None:
    for size in range(12):
        for count in range(14):
            shown = metrics.spread(range(size), count)
            assert [*shown] == sorted({*shown}) and len(shown) == min(size, count)
    assert metrics.spread("abcdefgh", 4) == [*"aceg"]
