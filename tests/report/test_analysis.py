"""The analysis of a sweep: effects, cells, notes, and the files and text of the report."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sweeps import ALL16, Made, write_run, write_sweep

from stasc.report import export, provenance, wording
from stasc.report.__main__ import main, show
from stasc.report.analysis.analysis import analyse
from stasc.report.data.reading import read
from stasc.report.records import Analysis, Effect, Interval

SMALL = Made(questions=30, iterations=2, seeds=(0, 1))
FILTERS = {"filter": ("strict", "lenient")}


def report(folder: Path) -> Analysis:
    return analyse(read(folder))


def effects(analysis: Analysis, outcome: str = "correction") -> dict[str, Effect]:
    return {" ".join(effect.factors): effect for effect in analysis.effects if effect.outcome == outcome}


def answers(run: Path) -> dict[tuple[int, str], tuple[float, float]]:
    """Returns mean initial and correction accuracy by iteration and question, in plain Python."""
    found: dict[tuple[int, str], list[tuple[bool, bool]]] = {}
    for line in (run / "outcomes.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault((row["n"], row["question_id"]), []).append((row["r1"] >= 1, row["r2"] >= 1))
    return {key: (mean([a for a, _ in pairs]), mean([b for _, b in pairs])) for key, pairs in found.items()}


def mean(values: list[Any]) -> float:
    return math.fsum(values) / len(values)


@pytest.mark.parametrize("samples", [1, 2])
def test_report_json_equals_a_recomputation_from_the_runs_own_files(folder: Path, samples: int) -> None:
    sweep = write_sweep(folder, Made(questions=30, iterations=2, seeds=(0, 1), samples=samples))
    main([str(sweep)])
    told = json.loads((sweep / "report.json").read_text())
    runs: dict[str, list[dict[tuple[int, str], tuple[float, float]]]] = {}
    for run in sorted(sweep.glob("*-seed*")):
        runs.setdefault(run.name.partition("-")[0], []).append(answers(run))
    last = {name: [{q: v for (n, q), v in one.items() if n == 2} for one in seeds] for name, seeds in runs.items()}
    corrected = {name: mean([y2 for one in seeds for _, y2 in one.values()]) for name, seeds in last.items()}
    gains = {name: mean([y2 - y1 for one in seeds for y1, y2 in one.values()]) for name, seeds in last.items()}
    for cell in told["cells"][:8]:
        assert cell["correction"]["value"] == pytest.approx(100 * corrected[cell["name"]])
        assert cell["gain"]["value"] == pytest.approx(100 * gains[cell["name"]])
    letters = {"init": (0, "E"), "filter": (1, "N"), "start": (2, "E")}
    for effect in told["effects"]:
        by_name = corrected if effect["outcome"] == "correction" else gains
        total = 0.0
        for name, value in by_name.items():
            total += value * math.prod(
                1 if name[at] == high else -1 for at, high in map(letters.get, effect["factors"])
            )
        assert effect["interval"]["value"] == pytest.approx(100 * total / 4)
        assert effect["interval"]["low"] < effect["interval"]["value"] < effect["interval"]["high"]
    assert len(told["effects"]) == 14


def test_the_tidy_outcomes_give_the_same_means(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    main([str(sweep)])
    rows = [json.loads(line) for line in (sweep / "outcomes.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 2 * 3 * 30
    for cell in report(sweep).cells[:8]:
        last = [row["corrected"] for row in rows if (row["cell"], row["iteration"]) == (cell.name, 2)]
        assert cell.correction.value == pytest.approx(100 * mean(last))


def test_main_effects_are_primary_and_interactions_secondary_and_adjusted_apart(folder: Path) -> None:
    found = effects(report(write_sweep(folder, SMALL)))
    main_effects = [effect for effect in found.values() if effect.family == "primary"]
    assert [effect.factors for effect in main_effects] == [("init",), ("filter",), ("start",)]
    smallest = min(main_effects, key=lambda effect: effect.p)
    assert smallest.p_adjusted == pytest.approx(min(1, 3 * smallest.p))
    interactions = [effect for effect in found.values() if effect.family == "secondary"]
    smallest = min(interactions, key=lambda effect: effect.p)
    assert smallest.p_adjusted == pytest.approx(min(1, 4 * smallest.p))
    pair = found["filter start"]
    assert pair.raw == pytest.approx(2 * pair.interval.value)
    assert found["filter"].raw is None


def test_a_choice_that_matters_is_the_headline_with_all_that_goes_with_it(folder: Path) -> None:
    def right(levels: Mapping[str, str], n: int) -> tuple[float, float]:
        return 0.5, 0.3 if levels["filter"] == "lenient" and n else 0.7

    found = report(write_sweep(folder, Made(questions=60, iterations=1, seeds=(0, 1, 2), right=right)))
    effect = effects(found)["filter"]
    assert found.headline.startswith("filter matters most for final correction accuracy: lenient instead of strict: -")
    for part in (f"{effect.interval.low:+.1f}", f"{effect.interval.high:+.1f}", "3 seeds, 60 questions", "adjusted p"):
        assert part in found.headline
    assert found.certainty.startswith("The second largest effect is that of ")
    assert "8 variants, 3 seeds, 60 questions" in found.power
    assert "with twice the seeds" in found.power


def test_where_nothing_matters_the_headline_says_so(folder: Path) -> None:
    made = Made(questions=60, iterations=1, seeds=(0, 1, 2), right=lambda levels, n: (0.5, 0.5), seed_sd=0.3)
    found = report(write_sweep(folder, made))
    assert not any((effect.interval.low or 0) > 0 for effect in found.effects if effect.family == "primary")
    unsure = ("but not after adjusting", "but new runs may differ", "No choice's effect on ")
    assert any(text in found.headline for text in unsure)


def test_one_choice_changed_at_a_time_is_not_told_as_a_factorial(folder: Path) -> None:
    made = Made(questions=60, iterations=1, seeds=(0, 1, 2))
    base = {"init": "evolving", "filter": "strict", "start": "evolving"}
    for change in ({}, {"init": "fixed"}, {"filter": "lenient"}, {"start": "fixed"}):
        for seed in made.seeds:
            write_run(folder / "one", {**base, **change}, seed, made)
    found = report(folder / "one")
    assert found.headline.startswith("Runs with ") and " only: " in found.headline and "most" not in found.headline
    assert all(one.simultaneous.low is None for one in found.comparisons)


def made_effect(name: str, value: float, half: float, p: float, crossed: float) -> Effect:
    about = Interval(value, value - half, value + half, "")
    return Effect(
        factors=(name,),
        label=f"{name} label",
        outcome="correction",
        n=1,
        interval=about,
        raw=None,
        se_question=1.0,
        se_seed=1.0,
        se_clustered=None,
        df=2.0,
        bootstrap=about,
        agree=True,
        simultaneous=about,
        p=p,
        p_adjusted=p,
        p_crossed=crossed,
        p_crossed_adjusted=crossed,
        family="primary",
        detectable=1.0,
        needed={},
        questions=100,
        seeds=3,
        samples=1,
        sentence="",
    )


def test_the_headline_names_the_choice_that_is_sure_though_another_estimate_is_larger() -> None:
    told = wording.headline([made_effect("init", 5.1, 12, 0.4, 0.4), made_effect("filter", -5, 3, 0.01, 0.01)])
    assert told.startswith("filter matters for final correction accuracy: filter label: -5.0 pp [-8.0, -2.0]")
    assert "The largest estimate is not distinguishable from 0: init label: +5.1 pp" in told


def test_a_choice_matters_only_if_seeds_counted_as_samples_allow_it() -> None:
    sure, unsure = made_effect("init", 5, 3, 0.01, 0.01), made_effect("init", 5, 3, 0.01, 0.2)
    other = made_effect("filter", 0, 3, 0.9, 0.9)
    assert wording.headline([sure, other]).startswith("init matters most for final correction accuracy: ")
    for first in (unsure, made_effect("init", 5, 6, 0.01, 0.2)):
        told = wording.headline([first, other])
        assert "in these training runs, but new runs may differ: init label" in told
        assert "adjusted p 0.01 over questions, 0.2 over questions and seeds" in told


def test_an_interaction_larger_than_every_effect_is_told_with_the_answer() -> None:
    main_effects = [made_effect("init", 5, 3, 0.01, 0.01), made_effect("filter", 0, 3, 0.9, 0.9)]
    crossing = replace(made_effect("init × filter", 22, 5, 0.01, 0.01), factors=("init", "filter"))
    told = wording.headline(main_effects, [crossing])
    assert "But the effects of init and filter depend on each other: init × filter label: +22.0 pp" in told
    apart = replace(made_effect("filter × start", 22, 5, 0.01, 0.01), factors=("filter", "start"))
    assert "But the effects of filter and start depend on each other: filter × start label" in wording.headline(
        main_effects, [apart]
    )
    weak = made_effect("init × filter", 4, 3, 0.01, 0.01)
    assert "depends" not in wording.headline(main_effects, [weak])


def test_an_interaction_that_is_surer_than_the_largest_effect_is_told_with_the_answer() -> None:
    main_effects = [made_effect("init", 18, 14, 0.01, 0.2), made_effect("filter", 0, 3, 0.9, 0.9)]
    crossing = replace(made_effect("init × filter", 10, 3, 0.01, 0.01), factors=("init", "filter"))
    told = wording.headline(main_effects, [crossing])
    assert "But the effects of init and filter depend on each other: init × filter label" in told


def test_a_small_interaction_is_not_told_beside_a_larger_effect_that_is_sure() -> None:
    main_effects = [made_effect("init", 5.1, 12, 0.4, 0.4), made_effect("filter", -5, 3, 0.01, 0.01)]
    crossing = replace(made_effect("init × filter", 3, 1, 0.01, 0.01), factors=("init", "filter"))
    assert "depend" not in wording.headline(main_effects, [crossing])


def test_a_seed_variance_of_zero_is_called_unreliable_if_seeds_are_few() -> None:
    for spread, seeds, told in ((0.0, 3, True), (0.0, 5, False), (1.0, 3, False)):
        sentence = wording.sentence(replace(made_effect("init", 5, 3, 0.01, 0.01), se_seed=spread, seeds=seeds))
        assert ("seed variance is estimated as 0" in sentence) == told


def test_how_often_an_effect_is_the_largest_is_left_to_many_seeds_or_one() -> None:
    for seeds, share, told in (
        (1, 0.5, "in 50.0 % of"),
        (3, 1.0, "The second largest effect is that of"),
        (5, 1.0, "in more than 99.9 % of"),
    ):
        pair = [replace(made_effect(name, 5, 3, 0.01, 0.01), seeds=seeds) for name in ("init", "filter")]
        assert told in wording.certainty(pair, share, 10_000)


def test_settings_that_only_a_baseline_has_are_told(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=20, iterations=1, seeds=(0,)))
    other = Made(questions=20, iterations=1, settings=("sampling.temperature=0.1",))
    write_run(sweep, {"baseline": "gold", "variant": "gold"}, 0, other)
    assert "gold has settings that no variant has: sampling.temperature=0.1" in report(sweep).notes


def test_nothing_is_called_significant(folder: Path) -> None:
    assert "significant" not in json.dumps(export.as_json(report(write_sweep(folder, SMALL))))


def test_one_seed_is_conditional_on_one_training_run(folder: Path) -> None:
    found = report(write_sweep(folder, Made(questions=30, iterations=1, seeds=(0,))))
    effect = effects(found)["filter"]
    assert (effect.se_seed, effect.seeds) == (None, 1)
    assert "conditional on one training run" in effect.sentence
    assert found.noise_floor == {}
    assert found.cells[0].correction.method.startswith("Wilson")


def test_answers_that_never_change_give_no_nan(folder: Path) -> None:
    made = Made(questions=30, iterations=1, seeds=(0, 1), right=lambda levels, n: (1.0, 1.0), seed_sd=0)
    found = report(write_sweep(folder, made))
    json.dumps(export.as_json(found), allow_nan=False)
    effect = effects(found)["filter"]
    assert (effect.interval.low, effect.interval.high) == pytest.approx((-10, 10))  # 3 / 30
    assert (effect.p, effect.agree) == (1, True)


def test_failed_missing_and_unfinished_cells_are_named_and_the_rest_is_reported(folder: Path) -> None:
    sweep = write_sweep(folder, Made(questions=30, iterations=2, seeds=(0, 1, 2)))
    for run in sweep.glob("*-seed1-*"):
        if run.name.startswith(("FIE", "FNE", "ENE")):
            shutil.rmtree(run)
    made = Made(questions=30, iterations=2)
    write_run(sweep, {"init": "fixed", "filter": "strict", "start": "evolving"}, 1, made, status="failed", until=1)
    write_run(sweep, {"init": "fixed", "filter": "lenient", "start": "evolving"}, 1, made, status="running", until=1)
    found = report(sweep)
    notes = "\n".join(found.notes)
    assert "FIE, seed 1: failed, last finished iteration 1 (iteration 1: FloatingPointError: the loss is nan)" in notes
    assert "FNE, seed 1: unfinished, last finished iteration 1" in notes
    assert "ENE, seed 1: missing from the sweep" in notes
    assert "effects use seeds 0 and 2, which all 8 variants have; excluded: 1" in notes
    assert {effect.seeds for effect in found.effects} == {2}
    assert {cell.name: cell.seeds for cell in found.cells}["EIE"] == (0, 1, 2)
    assert {cell.name: cell.seeds for cell in found.cells}["FIE"] == (0, 2)


def test_a_variant_that_failed_with_all_seeds_takes_its_level_with_it(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors={**FILTERS, "start": ("fixed", "evolving")}, questions=20, iterations=1))
    for run in sweep.glob("ENE-*"):
        shutil.rmtree(run)
    found = report(sweep)
    assert len([effect for effect in found.effects if effect.outcome == "correction"]) == 1
    assert any("only, the largest complete design" in note for note in found.notes)
    assert len(found.cells) == 4  # all variants with a complete run, and zero-shot
    assert [effect.label for effect in found.comparisons] == ["EIE instead of EIF"]


def test_a_run_that_stopped_as_nothing_was_kept_counts_with_its_last_model(folder: Path) -> None:
    made = Made(factors=FILTERS, questions=30, iterations=3, seeds=(0,))
    sweep = write_sweep(folder, made)
    for run in sweep.glob("EIE-*"):
        shutil.rmtree(run)
    run = write_run(sweep, {"filter": "strict"}, 0, made, status="stopped_empty", until=1)
    found = report(sweep)
    expected = mean([y2 for (n, _), (_, y2) in answers(run).items() if n == 1])
    at_end = next(cell for cell in found.cells if cell.name == "EIE")
    assert (at_end.n, at_end.correction.value) == (3, pytest.approx(100 * expected))
    assert any("EIE, seed 0: stopped after iteration 1 because nothing was kept" in note for note in found.notes)


def test_a_setting_of_three_levels_is_compared_pair_by_pair(folder: Path) -> None:
    made = Made(factors={"filter": ("strict", "maintaining", "lenient"), "start": ("fixed", "evolving")}, questions=30)
    found = report(write_sweep(folder, made))
    assert {effect.factors for effect in found.effects} == {("start",)}
    assert [effect.label for effect in found.comparisons] == [
        "maintaining instead of strict",
        "lenient instead of strict",
        "lenient instead of maintaining",
    ]
    cells = {cell.name: cell.correction.value for cell in found.cells}
    assert found.comparisons[1].interval.value == pytest.approx(
        (cells["ENE"] + cells["ENF"] - cells["EIE"] - cells["EIF"]) / 2
    )
    start = effects(found)["start"].interval.value
    assert start == pytest.approx(mean([cells[f"E{f}E"] - cells[f"E{f}F"] for f in "INM"]))
    assert any("filter has 3 levels" in note for note in found.notes)


def test_choices_changed_one_at_a_time_are_compared_with_what_they_differ_from(folder: Path) -> None:
    for levels in ({}, {"init": "fixed"}, {"filter": "lenient"}, {"start": "fixed"}):
        for seed in (0, 1):
            write_run(folder, levels, seed, SMALL)
    found = report(folder)
    told = {effect.label for effect in (*found.comparisons, *found.effects)}
    assert len({label for label in told if "instead of" in label}) == 3
    assert not any("×" in label for label in told)


def test_runs_of_other_lengths_are_compared_where_all_are(folder: Path) -> None:
    write_run(folder, {}, 0, Made(questions=10, iterations=3))
    write_run(folder, {"filter": "lenient"}, 0, Made(questions=10, iterations=2))
    found = report(folder)
    assert found.n == 2
    assert "runs have 2 and 3 iterations; all are compared at n = 2" in found.notes


def test_baselines_are_rows_beside_the_variants(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=30, iterations=2, seeds=(0,)))
    write_run(sweep, {"baseline": "gold", "variant": "gold"}, 0, SMALL)
    several = Made(questions=30, iterations=2, samples=4)  # the run has n = 0 alone, whatever its settings ask for
    run = write_run(sweep, {"baseline": "self_consistency", "variant": "self-consistency"}, 0, several, until=0)
    found = report(sweep)
    rows = {cell.name: cell for cell in found.cells}
    assert [cell.name for cell in found.cells if cell.kind == "baseline"] == ["zero-shot", "gold", "self-consistency"]
    assert (rows["zero-shot"].n, rows["gold"].n, rows["self-consistency"].n) == (0, 2, 0)
    assert rows["zero-shot"].correction.value == found.curves["EIE"][0].correction.value
    lines = [json.loads(line) for line in (run / "outcomes.jsonl").read_text().splitlines()]
    assert rows["self-consistency"].correction.value == pytest.approx(100 * mean([line["vote"] >= 1 for line in lines]))
    own = 100 * mean([line["r2"] >= 1 for line in lines])
    vote = rows["self-consistency"].correction.value
    assert vote != pytest.approx(own) and rows["self-consistency"].over_correction.value == pytest.approx(vote - own)
    assert len(found.curves["self-consistency"]) == 1
    tidy = next(export.tidy(run) for run in read(sweep).baselines if run.cell == "self-consistency")
    assert 100 * mean([float(reward >= 1) for reward in tidy["vote"]]) == pytest.approx(vote)
    by_question: dict[str, list[bool]] = {}
    for line in lines:
        by_question.setdefault(line["question_id"], []).append(line["r1"] >= 1)
    any_of_two = [any(two) for some in by_question.values() for two in itertools.combinations(some, 2)]
    assert found.ceilings["pass@2"].value == pytest.approx(100 * mean(any_of_two))
    assert found.ceilings["pass@4"].value == pytest.approx(100 * mean([any(some) for some in by_question.values()]))
    assert found.ceilings["vote@2"].value == rows["self-consistency"].correction.value


@pytest.mark.parametrize("baseline", ["gold", "star"])
def test_a_baseline_is_compared_by_the_answers_that_it_is_trained_to_give(folder: Path, baseline: str) -> None:
    target = {"gold": "gold", "star": "initial"}[baseline]
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=30, iterations=2, seeds=(0,)))
    run = write_run(sweep, {"baseline": baseline, "target": target, "variant": baseline}, 0, SMALL)
    found = report(sweep)
    initial = {n: 100 * mean([y1 for (one, _), (y1, _) in answers(run).items() if one == n]) for n in (0, 2)}
    m_0 = 100 * mean([y2 for (n, _), (_, y2) in answers(run).items() if n == 0])
    cell = next(cell for cell in found.cells if cell.name == baseline)
    assert cell.reached.value == pytest.approx(initial[2])
    assert cell.over_initial.value == pytest.approx(initial[2] - initial[0])
    assert cell.over_correction.value == pytest.approx(initial[2] - m_0)
    corrected = {cell.name: cell.correction.value for cell in found.cells if cell.kind == "variant"}
    pairs = {one.first: one for one in found.differences if one.second == baseline}
    assert {*pairs} == {*corrected, "zero-shot"}
    for name, value in corrected.items():
        assert pairs[name].outcomes == ("correction", "initial")
        assert pairs[name].interval.value == pytest.approx(value - initial[2])
    assert pairs["zero-shot"].outcomes == ("initial", "initial")
    assert pairs["zero-shot"].interval.value == pytest.approx(initial[0] - initial[2])
    assert any(note.startswith(f"{baseline} is trained to give initial answers") for note in found.notes)
    alone = report(run)
    assert alone.headline.startswith(f"{baseline} after 2 iterations: initial answers are {initial[2]:.1f}")


def test_how_seeds_differ_is_pooled_over_variants_and_all_effects(folder: Path) -> None:
    found = report(write_sweep(folder, Made(questions=60, iterations=1, seeds=(0, 1), seed_sd=0.3)))
    told = {effect.interval.method for effect in found.effects} | {one.interval.method for one in found.differences}
    assert any("pooled over all effects" in method for method in told)
    assert any("pooled over variants" in method for method in told)
    assert any("pooled over variants" in cell.correction.method for cell in found.cells)
    assert not any("pooled" in cell.correction.method for cell in found.cells if cell.name == "zero-shot")


def test_few_seeds_of_the_only_variant_are_told_to_say_little(folder: Path) -> None:
    made = Made(questions=30, iterations=1)
    for seed, told in ((0, False), (1, True)):
        write_run(folder, {}, seed, made)
        assert any("too few to estimate how much training runs differ" in note for note in report(folder).notes) == told


def test_seeds_that_the_first_command_did_not_declare_are_told(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=20, iterations=1, seeds=(0, 1, 4, 5)))
    assert "assume that the number of seeds was fixed in advance" in report(sweep).declared
    assert not any("came later" in note for note in report(sweep).notes), "of an earlier version, nobody knows"
    for seeds, told in (([0, 1, 4, 5], False), ([0, 1], True)):
        (sweep / "declared.json").write_text(json.dumps({"schema": 1, "seeds": seeds, "swept": {}}))
        found = report(sweep)
        assert f"first command declared {len(seeds)} seeds" in found.declared
        assert any("declared 2 seeds; seeds 4 and 5 came later" in note for note in found.notes) == told
    (sweep / "declared.json").write_text("[")
    assert any("declared.json is damaged" in note for note in report(sweep).notes)


def test_within_a_run_corrections_are_compared_with_initial_answers(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL)
    found = report(run)
    cell = found.cells[0]
    pairs = [pair for (n, _), pair in answers(run).items() if n == 2]
    better, worse = sum(y2 > y1 for y1, y2 in pairs), sum(y2 < y1 for y1, y2 in pairs)
    change = cell.changes[0]
    assert (change.better, change.worse) == (better, worse)
    tail = sum(math.comb(better + worse, k) for k in range(min(better, worse) + 1)) / 2 ** (better + worse)
    assert change.p == pytest.approx(min(1, 2 * tail))
    assert cell.gain.value == pytest.approx(100 * (better - worse) / 30)
    assert cell.transitions["wrong_right"] == pytest.approx(100 * better / 30)
    first = mean([y1 for (n, _), (y1, _) in answers(run).items() if n == 0])
    assert cell.over_initial.value == pytest.approx(cell.correction.value - 100 * first)
    assert (found.effects, found.power) == ((), "")
    assert found.headline.startswith("EIE after 2 iterations: corrections are ")


def test_the_noise_floor_is_that_of_answers_sampled_again(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=30, iterations=1, seeds=(0, 1, 2)))
    (floor,) = report(sweep).noise_floor.values()
    seeds = [answers(run) for run in sorted(sweep.glob("EIE-*"))]
    variance = 0.0
    for question in {question for _, question in seeds[0]}:
        values = [100 * one[0, question][1] for one in seeds]
        variance += sum((value - mean(values)) ** 2 for value in values) / 2
    assert floor.high == pytest.approx(1.959964 * math.sqrt(2 * variance) / 30)


def bits4(levels: Mapping[str, str], n: int) -> tuple[float, float]:
    return (0.3, 0.2) if levels.get("finetune") == "qlora" else (0.5, 0.4)


def test_each_m_0_that_variants_begin_with_is_a_row_and_has_a_noise_floor(folder: Path) -> None:
    made = Made(factors={"finetune": ("full", "lora", "qlora")}, questions=60, iterations=1, seeds=(0, 1), right=bits4)
    found = report(write_sweep(folder, made))
    rows = {cell.name: cell for cell in found.cells if cell.kind == "baseline"}
    assert [*rows] == ["zero-shot, finetune=full or lora", "zero-shot, finetune=qlora"]
    for name, variant in zip(rows, ("EIE", "EIE-qlora"), strict=True):
        assert rows[name].correction.value == found.curves[variant][0].correction.value
    assert [*found.noise_floor] == ["M_0, finetune=full or lora", "M_0, finetune=qlora"]


def test_answers_that_differ_by_chance_make_no_other_m_0(folder: Path) -> None:
    def right(levels: Mapping[str, str], n: int) -> tuple[float, float]:
        return (0.5, 0.4) if levels["filter"] == "strict" else (0.5, 0.45)

    found = report(write_sweep(folder, Made(factors=FILTERS, questions=60, iterations=1, seeds=(0,), right=right)))
    assert [cell.name for cell in found.cells if cell.kind == "baseline"] == ["zero-shot"]


def test_what_counts_as_right_is_no_choice_to_rank(folder: Path) -> None:
    def right(levels: Mapping[str, str], n: int) -> tuple[float, float]:
        return (0.3, 0.2) if levels["reward"] == "exact_match" else (0.6, 0.7)

    made = Made(
        factors={"reward": ("in_accuracy", "exact_match"), **FILTERS},
        questions=40,
        iterations=1,
        seeds=(0,),
        right=right,
    )
    found = report(write_sweep(folder, made))
    assert {effect.factors for effect in found.effects} == {("filter",)}
    assert "reward decides which answers count as right" in found.headline
    assert any(note.startswith("reward decides which answers count as right") for note in found.notes)
    assert not any("exact_match" in one.first and "in_accuracy" in one.second for one in found.differences)
    assert not any("in_accuracy" in one.first and "exact_match" in one.second for one in found.differences)
    assert len([cell for cell in found.cells if cell.name.startswith("zero-shot, reward=")]) == 2


def test_a_sweep_of_rewards_alone_has_no_highest_variant(folder: Path) -> None:
    made = Made(factors={"reward": ("in_accuracy", "exact_match", "f1")}, questions=20, iterations=1, seeds=(0,))
    found = report(write_sweep(folder, made))
    assert found.headline.startswith("reward decides which answers count as right")
    assert (found.effects, found.comparisons) == ((), ())
    assert [(one.first, one.second) for one in found.differences] == [
        (f"EIE, reward={name}", f"zero-shot, reward={name}") for name in ("exact_match", "f1", "in_accuracy")
    ]


def test_any_two_variants_are_compared_question_by_question(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=30, facts=3, iterations=1, seeds=(0, 1)))
    found = report(sweep)
    assert [(one.first, one.second) for one in found.differences] == [
        ("EIE", "ENE"),
        ("EIE", "zero-shot"),
        ("ENE", "zero-shot"),
    ]
    by_question: dict[str, list[dict[str, float]]] = {}
    for name in ("EIE", "ENE"):
        seeds = [answers(run) for run in sorted(sweep.glob(f"{name}-*"))]
        asked = [question for n, question in seeds[0] if n == 1]
        by_question[name] = [{q: one[1, q][1] for q in asked} for one in seeds]
    first, second = (
        [100 * mean([one[q] for one in by_question[name]]) for q in by_question[name][0]] for name in ("EIE", "ENE")
    )
    difference, expected = found.differences[0], [a - b for a, b in zip(first, second, strict=True)]
    assert difference.interval.value == pytest.approx(mean(expected))
    assert difference.rho == pytest.approx(statistics.correlation(first, second))
    groups = [sum(one - mean(expected) for one in expected[i : i + 3]) for i in range(0, 30, 3)]
    half = 2.262157 * math.sqrt(math.fsum(one**2 for one in groups)) / 30  # t quantile at 9 degrees of freedom
    assert difference.clustered and difference.clustered.high == pytest.approx(mean(expected) + half, rel=1e-5)
    effect = effects(found)["filter"]
    assert effect.se_clustered == pytest.approx(half / 2.262157, rel=1e-5)
    (note,) = [note for note in found.notes if note.startswith("questions come in ")]
    assert "10 groups" in note and "such as made/0" in note


def test_too_few_groups_of_questions_are_told(folder: Path) -> None:
    found = report(write_sweep(folder, Made(factors=FILTERS, questions=30, facts=10, iterations=1, seeds=(0,))))
    assert any("3 groups" in note and "too few to cluster by" in note for note in found.notes)
    assert all(effect.se_clustered is None for effect in found.effects)


def test_a_single_run_says_what_its_corrections_change_and_when_that_is_too_little_for_a_test(folder: Path) -> None:
    run = write_run(folder, {}, 0, Made(questions=30, iterations=1, right=lambda levels, n: (0.5, 0.5)))
    found = report(run)
    assert not found.cells[0].changes[0].can_reach
    assert (
        "0 answers changed from wrong to right and 0 from right to wrong (too few changes for p < .05)"
        in found.certainty
    )


def test_two_seeds_are_told_to_say_little_and_twice_as_many_are_never_worse(folder: Path) -> None:
    for seed in range(3):
        found = report(write_sweep(folder / str(seed), Made(questions=40, iterations=1, seeds=(seed, seed + 10))))
        assert "Two seeds are too few to estimate how much training runs differ" in found.power
        told = re.search(
            r"is ([\d.]+) pp; it would be ([\d.]+) pp with twice the questions and ([\d.]+) pp with twice the seeds",
            found.power,
        )
        assert told
        now, questions, seeds = map(float, told.groups())
        assert questions <= now and seeds <= now


def test_how_many_questions_an_effect_takes_is_told(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=80, iterations=3, seeds=(0,)))
    found = report(sweep)
    first, second = (
        [y2 for (n, _), (_, y2) in answers(next(sweep.glob(f"{v}-*"))).items() if n == 3] for v in ("EIE", "ENE")
    )
    variance = statistics.variance([100 * (b - a) for a, b in zip(first, second, strict=True)])
    needed = math.ceil((1.959964 + 0.841621) ** 2 * variance / 25)
    assert effects(found)["filter"].needed["5"] == needed
    assert f"about {float(f'{needed:.2g}'):,.0f} for 5 pp" in found.power


def test_the_vote_of_all_answers_has_an_interval(folder: Path) -> None:
    made = Made(questions=30, iterations=1, samples=5)
    for seed in (0, 1):
        run = write_run(folder, {"baseline": "self_consistency", "variant": "self-consistency"}, seed, made, until=0)
    found = report(folder).ceilings["vote@5"]
    right = []
    for run in folder.glob("self*"):
        lines = [json.loads(line) for line in (run / "outcomes.jsonl").read_text().splitlines()]
        for name in {line["question_id"] for line in lines}:
            right.append(sum(line["r1"] for line in lines if line["question_id"] == name) >= 3)
    assert found.value == pytest.approx(100 * mean(right))
    assert found.low is not None and found.high is not None and found.low < found.value < found.high


def test_votes_of_other_sizes_have_names_of_their_own(folder: Path) -> None:
    baseline = {"baseline": "self_consistency", "variant": "self-consistency"}
    for seed, k in ((0, 2), (1, 3)):
        run = write_run(folder, baseline, seed, Made(questions=10, iterations=1, samples=4), until=0)
        edited = (run / "summary.json").read_text().replace('"vote_k": 2', f'"vote_k": {k}')
        (run / "summary.json").write_text(edited)
    found = report(folder)
    assert [*found.ceilings] == ["vote@2 or 3", "vote@4", "pass@1", "pass@2", "pass@4"]
    assert any("the majority vote of 2 or 3 initial answers" in note for note in found.notes)


def test_two_baselines_that_vote_are_told_apart(folder: Path) -> None:
    for name, samples in (("self-consistency", 4), ("self-consistency-lora", 2)):
        made = Made(questions=10, iterations=1, samples=samples)
        write_run(folder, {"baseline": "self_consistency", "variant": name}, 0, made, until=0)
    ceilings = report(folder).ceilings
    assert {"self-consistency: vote@2", "self-consistency: vote@4", "self-consistency-lora: vote@2"} <= {*ceilings}


def test_runs_that_are_missing_with_the_same_seeds_are_one_note(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    for run in (*sweep.glob("FIE-seed1-*"), *sweep.glob("FNE-seed1-*")):
        shutil.rmtree(run)
    assert "FIE and FNE, seed 1: missing from the sweep" in report(sweep).notes


def test_nothing_that_is_printed_commands_the_terminal(folder: Path) -> None:
    found = report(write_sweep(folder, Made(factors=FILTERS, questions=20, iterations=1, seeds=(0,))))
    nasty = "\x1b[2J\x1b]0;taken\x07\x9b31mred\u202e"
    cells = tuple(replace(cell, name=f"{nasty}{cell.name}") for cell in found.cells)
    effects = tuple(replace(effect, label=f"{nasty}{effect.label}") for effect in found.effects)
    out = io.StringIO()
    show(replace(found, headline=nasty, notes=(nasty,), cells=cells, effects=effects), Console(file=out))
    assert "red" in out.getvalue() and "taken" not in out.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & {*out.getvalue()}


def test_the_best_iteration_on_the_test_questions_is_called_optimistic(folder: Path) -> None:
    found = report(write_sweep(folder, Made(factors=FILTERS, questions=30, iterations=4, seeds=(0,))))
    for name, curve in found.curves.items():
        if name in found.optimistic:
            assert found.optimistic[name].value == max(cell.correction.value for cell in curve[1:])
            assert found.optimistic[name].method.startswith("optimistic")


def test_a_stage_that_was_computed_is_not_reused_when_its_run_goes_on(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL)
    before = report(run).cells[0].reused
    journal = run / "journal.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    again = [{**event, "reused": True} for event in events if event["event"] == "stage"]
    loaded = [{**again[0], "kind": "model", "key": "m"}] * 2
    journal.write_text("".join(json.dumps(event) + "\n" for event in [*events, *again, *loaded]))
    assert report(run).cells[0].reused == before


def test_without_its_extra_the_command_names_it(folder: Path) -> None:
    code = f"import sys; sys.modules['scipy'] = None; from stasc.report.__main__ import main; main([{str(folder)!r}])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr == "error: scipy is not installed; pip install 'stasc[report]'\n"


def test_where_nothing_differs_no_choice_is_called_the_largest(folder: Path) -> None:
    same = Made(questions=20, iterations=1, seeds=(0, 1), right=lambda levels, n: (0.0, 0.0))
    found = report(write_sweep(folder, same))
    assert found.headline.startswith("No choice changed final correction accuracy")
    assert found.certainty == ""


def test_what_was_spent_is_what_the_summaries_say(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL)
    entries = json.loads((run / "summary.json").read_text())["iterations"]
    cell = report(run).cells[0]
    assert cell.steps == sum(entry["finetune"]["steps"] for entry in entries[1:])
    assert cell.pairs == sum(entry["train"]["pairs"] for entry in entries[1:])
    assert cell.seconds == pytest.approx(3 * (1.5 + 2.0))
    assert cell.reused == 3


@pytest.mark.parametrize(
    ("folder", "short"),
    [
        ("/home/me/multirun/ablation", "multirun/ablation"),
        ("/home/me/outputs/2026-01-01/12-00-00", "outputs/2026-01-01/12-00-00"),
        ("/home/outputs/multirun/ablation/EIE-seed0-1a2b", "multirun/ablation/EIE-seed0-1a2b"),
        ("/home/me/mine", "mine"),
    ],
)
def test_a_folder_is_named_as_one_would_give_it(folder: str, short: str) -> None:
    assert provenance._short(Path(folder)) == short


def test_runs_that_stopped_alike_are_told_together(folder: Path) -> None:
    sweep = write_sweep(folder, Made(factors=FILTERS, questions=20, iterations=2, seeds=(0, 1, 2)))
    for cell in ("strict", "lenient"):
        for seed in (0, 1):
            for run in sweep.glob(f"{'EIE' if cell == 'strict' else 'ENE'}-seed{seed}-*"):
                shutil.rmtree(run)
            write_run(
                sweep,
                {"filter": cell},
                seed,
                Made(factors=FILTERS, questions=20, iterations=2, seeds=(0, 1, 2)),
                status="stopped_empty",
                until=1,
            )
    told = [note for note in report(sweep).notes if "nothing was kept" in note]
    assert len(told) == 1 and told[0].startswith("EIE and ENE, seeds 0 and 1: stopped after iteration 1")


def test_provenance_names_versions_commits_and_commands_and_no_path(folder: Path) -> None:
    found = report(write_sweep(folder, SMALL))
    assert found.provenance["commits"] == ["0123abc"]
    assert found.provenance["versions"][0]["torch"] == "2.13.0"
    assert found.provenance["commands"][0].startswith("python -m stasc.run --multirun init=fixed,evolving")
    assert str(folder) not in json.dumps(export.as_json(found))


def test_the_command_prints_the_answer_and_writes_what_it_rests_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(folder, SMALL)
    main([str(sweep)])
    text = capsys.readouterr().out
    told = json.loads((sweep / "report.json").read_text())
    assert told["schema"] == 1
    assert text.startswith(told["headline"])
    for part in ("lenient instead of strict", "init × filter × start", "zero-shot", "report.json", "outcomes.jsonl"):
        assert part in text


def test_the_report_of_a_run_leaves_its_outcomes_alone(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL)
    before = (run / "outcomes.jsonl").read_bytes()
    main([str(run)])
    assert (run / "outcomes.jsonl").read_bytes() == before
    assert (run / "report.json").exists()


def test_what_cannot_be_reported_is_said_in_a_line(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL, status="running", until=0)
    with pytest.raises(SystemExit, match=r"error: .*: no run is complete \(.*: unfinished\)"):
        main([str(run)])


@pytest.mark.slow
def test_a_large_sweep_takes_seconds_and_little_memory(folder: Path) -> None:
    """16 variants, 5 seeds, 10 iterations, 500 questions."""
    sweep = write_sweep(folder, Made(factors=ALL16, seeds=range(5), questions=500, iterations=10))
    begun = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", MEASURED, str(sweep)], stdout=subprocess.PIPE, text=True)
    out, _ = child.communicate()
    assert child.returncode == 0
    assert int(out.split()[-1]) < 1500  # MB
    assert time.monotonic() - begun < 60
    assert (sweep / "report.html").stat().st_size < 20e6


MEASURED = """
import resource, sys
from stasc.report.__main__ import main
main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
