"""Reading a sweep's folder: the settings that vary, and the runs that exist or are missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sweeps import ALL16, Made, write_multirun, write_run, write_sweep

from stasc.cli.compose import variant
from stasc.report import design
from stasc.report.data.reading import read

SMALL = Made(questions=6, iterations=2, seeds=(0, 1))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def one(folder: Path, name: str) -> Path:
    return next(folder.glob(name))


def test_the_choices_of_a_sweep_are_its_settings_with_the_plainer_option_first(folder: Path) -> None:
    found = read(write_sweep(folder, Made(factors=ALL16, questions=3, iterations=1, seeds=(0,))))
    assert [*found.settings.items()] == [
        ("init", ("fixed", "evolving")),
        ("filter", ("strict", "lenient")),
        ("start", ("fixed", "evolving")),
        ("finetune", ("full", "lora")),
    ]
    assert len(found.runs) == len(found.cells) == 16
    assert found.cells["FNE-lora"] == {"init": "fixed", "filter": "lenient", "start": "evolving", "finetune": "lora"}


def test_a_single_run_varies_nothing(folder: Path) -> None:
    run = write_run(folder, {"filter": "lenient"}, 3, SMALL)
    found = read(run)
    assert (found.settings, found.cells) == ({}, {"ENE": {}})
    assert (found.runs[0].seed, found.runs[0].status) == (3, "finished")


def test_outcomes_pairs_and_journal_are_those_of_the_files(folder: Path) -> None:
    run = read(write_run(folder, {}, 0, SMALL)).runs[0]
    assert run.folder
    lines = [json.loads(line) for line in (run.folder / "outcomes.jsonl").read_text().splitlines()]
    assert run.outcomes["y2"].tolist() == [line["y2"] for line in lines]
    assert run.outcomes["r1"].tolist() == [line["r1"] for line in lines]
    assert run.pairs()["kept"].sum() == sum(entry["train"]["kept"] for entry in run.iterations if entry["train"])
    assert run.events[0]["event"] == "run_started"


def test_a_number_that_varies_is_a_factor_and_part_of_the_cells_names(folder: Path) -> None:
    made = Made(factors={"filter": ("strict", "lenient"), "finetune.learning_rate": ("1e-4", "5e-5")}, questions=3)
    found = read(write_sweep(folder, made))
    assert found.settings["finetune.learning_rate"] == ("5e-05", "0.0001")
    assert sorted(found.cells) == [f"{v}, learning_rate={rate}" for v in ("EIE", "ENE") for rate in ("0.0001", "5e-05")]


def test_what_is_in_an_option_is_no_setting_of_its_own_unless_given(folder: Path) -> None:
    made = Made(factors={"finetune": ("full", "lora", "qlora")}, questions=3, seeds=(0,))
    sweep = write_sweep(folder, made)
    assert read(sweep).settings == {"finetune": ("full", "lora", "qlora")}  # though rank and learning rate differ
    write_run(sweep, {"finetune": "lora", "finetune.rank": "4"}, 0, made)
    assert read(sweep).settings["finetune.rank"] == ("4", "16", "-")


def test_a_setting_that_follows_from_another_does_not_count(folder: Path) -> None:
    found = read(write_sweep(folder, Made(factors={"prompt": ("direct", "cot")}, questions=3, seeds=(0,))))
    assert found.settings == {"prompt": ("cot", "direct")}  # reward.marker is that of the prompt


def test_a_setting_that_was_edited_between_sweeps_is_noted_with_the_choice_it_goes_with(folder: Path) -> None:
    for name, rate in (("strict", "2e-5"), ("lenient", "1e-5")):
        for start in ("fixed", "evolving"):
            made = Made(questions=5, iterations=1, edited=(f"finetune.learning_rate={rate}", f"filter.correct_at={1}"))
            write_run(folder, {"filter": name, "start": start}, 0, made)
    sweep = read(folder)
    assert [*sweep.settings] == ["filter", "start"]
    assert sweep.notes == ("filter also changes finetune.learning_rate: 1e-05 with lenient, 2e-05 with strict",)


def test_a_setting_within_a_choice_that_was_edited_is_noted_with_the_other_choice(folder: Path) -> None:
    for name, rate in (("strict", "3e-5"), ("lenient", "1e-5")):
        write_run(
            folder,
            {"filter": name, "finetune": "full"},
            0,
            Made(iterations=1, edited=(f"finetune.learning_rate={rate}",)),
        )
        write_run(folder, {"filter": name, "finetune": "lora"}, 0, Made(iterations=1))
    sweep = read(folder)
    assert [*sweep.settings] == ["filter", "finetune"]
    assert sweep.notes == (
        "filter also changes finetune.learning_rate: 1e-05 with lenient and full, 0.0005 with lenient and lora, "
        "3e-05 with strict and full, 0.0005 with strict and lora",
    )


def test_a_setting_that_another_one_is_interpolated_into_is_not_noted(folder: Path) -> None:
    for threshold in ("0.5", "1.0"):
        made = Made(questions=5, iterations=1, edited=(f"filter.correct_at={threshold}",))
        write_run(folder, {"correct_at": threshold}, 0, made)
    sweep = read(folder)
    assert [*sweep.settings] == ["correct_at"] and sweep.notes == ()


def test_two_choices_that_go_together_are_both_told(folder: Path) -> None:
    for init, filter_ in (("fixed", "strict"), ("evolving", "lenient")):
        write_run(folder, {"init": init, "filter": filter_}, 0, SMALL)
    assert [*read(folder).settings] == ["init", "filter"]


def test_runs_without_a_journal_are_read_from_what_hydra_left(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    shutil.rmtree(one(sweep, "FNE-seed1-*"))
    early = write_run(sweep, {"init": "fixed", "filter": "lenient", "start": "evolving"}, 1, SMALL, status="early")
    (early / "run.log").write_text("Traceback (most recent call last):\nOSError: no such model\n")
    found = {run.name: run for run in read(sweep).runs}[early.name]
    assert (found.status, found.error, found.cell, found.seed) == ("failed", "OSError: no such model", "FNE", 1)


@pytest.mark.parametrize(("status", "read_as"), [("running", "unfinished"), ("failed", "failed")])
def test_a_run_that_did_not_end_well_says_how(folder: Path, status: str, read_as: str) -> None:
    run = read(write_run(folder, {}, 0, SMALL, status=status, until=1)).runs[0]
    assert (run.status, run.complete, len(run.iterations)) == (read_as, False, 2)


def test_a_run_killed_while_it_wrote_its_summary_is_unfinished(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL, status="running", until=1)
    (run / "summary.json").unlink()
    assert read(run).runs[0].status == "unfinished"


def test_runs_that_are_not_there_are_missing_by_name(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    shutil.rmtree(one(sweep, "FNE-seed1-*"))
    for run in sweep.glob("ENF-*"):
        shutil.rmtree(run)
    missing = [(run.cell, run.seed) for run in read(sweep).runs if run.status == "missing"]
    assert sorted(missing) == [("ENF", 0), ("ENF", 1), ("FNE", 1)]


def test_a_missing_run_is_named_by_its_options_as_the_command_names_it() -> None:
    """One option has no letter, one a suffix of its own: three of the four combinations were run."""
    filters = {"S": {"_target_": "a.Strict", "letter": "S"}, "mine": {"_target_": "my_filter.Mine"}}
    targets = {"y2": {"_target_": "a.Correction", "suffix": ""}, "y1": {"_target_": "a.Initial", "suffix": "-initial"}}
    settings: list[dict[str, Any]] = [
        {"init": {"_target_": "a.Init", "letter": "F"}, "filter": filters[first], "target": targets[second]}
        for first, second in (("S", "y2"), ("S", "y1"), ("mine", "y2"))
    ]
    settings = [{**some, "variant": variant(some)} for some in settings]
    found = design.names(design.find(settings, [{}] * 3), settings)
    assert {*found.values()} == {"FS", "FS-initial", "Fmine", "Fmine-initial"}


def test_seeds_and_levels_that_only_the_command_knows_are_missed(folder: Path) -> None:
    made = Made(factors={"filter": ("strict",)}, questions=3, seeds=(0,))
    sweep = write_sweep(folder, made)
    write_multirun(sweep, ["filter=strict,lenient", "seed=range(2)", "sweep.name=example"])
    found = read(sweep)
    assert [(run.cell, run.seed) for run in found.runs if run.status == "missing"] == [("EIE", 1)]
    assert found.notes == ("no run has filter=lenient, which the sweep asked for",)


def test_one_choice_changed_at_a_time_is_not_missed_as_a_factorial(folder: Path) -> None:
    for levels in ({}, {"init": "fixed"}, {"filter": "lenient"}, {"start": "fixed"}):
        write_run(folder, levels, 0, SMALL)
    found = read(folder)
    assert sorted(found.cells) == ["EIE", "EIF", "ENE", "FIE"]
    assert all(run.status == "finished" for run in found.runs)


def test_runs_on_other_questions_are_refused_with_the_setting(folder: Path) -> None:
    write_run(folder, {}, 0, SMALL)
    write_run(folder, {"filter": "lenient"}, 0, Made(questions=6, iterations=2, data="x", settings=["dataset.seed=1"]))
    with pytest.raises(ValueError, match=r"different questions \(6 and 6, 0 in common; dataset.seed is 0 in one and 1"):
        read(folder)


def test_a_damaged_line_is_named_and_its_run_alone_left_out(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    damaged = one(sweep, "EIE-seed0-*")
    edit(damaged / "outcomes.jsonl", '"r2": ', '"r2": oops')
    found = read(sweep)
    assert [run.name for run in found.runs if not run.complete] == [damaged.name]
    assert found.notes == (f"{damaged.name}/outcomes.jsonl: damaged at line 1",)


@pytest.mark.parametrize(
    ("file", "old", "new", "told"),
    [
        ("outcomes.jsonl", '"r2": 1.0', '"r2": 0.0', "outcomes.jsonl was changed after the run ended"),
        ("journal.jsonl", '"seed": 0', '"seed": 1', "line 1: does not match its checksum"),
        ("summary.json", '"iterations"', '"iteration"', "summary.json is damaged"),
    ],
)
def test_files_that_were_changed_are_told(folder: Path, file: str, old: str, new: str, told: str) -> None:
    sweep = write_sweep(folder, SMALL)
    edit(one(sweep, "EIE-seed0-*") / file, old, new)
    found = read(sweep)
    assert len(found.notes) == 1 and told in found.notes[0]
    assert len(found.runs) == 16
    assert str(folder) not in found.notes[0]


def test_answers_that_are_not_there_are_noticed(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL, status="running")
    lines = (run / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (run / "outcomes.jsonl").write_text("".join(lines[:-1]))
    assert "holds 5 of the 6 answers of iteration 2" in read(run).notes[0]


def test_text_that_is_no_text_is_read_all_the_same(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL, status="running")
    edit(run / "outcomes.jsonl", '"y1": "The', '"y1": "\\ud800\\u0000</script>The')
    assert read(run).runs[0].outcomes["y1"][0].startswith("?\0</script>The")


def test_of_two_runs_of_a_cell_the_one_that_got_further_counts(folder: Path) -> None:
    short = write_run(folder, {}, 0, Made(questions=6, iterations=1))
    write_run(folder, {}, 0, SMALL)
    found = read(folder)
    assert [len(run.iterations) for run in found.runs] == [3]
    assert short.name in found.notes[0]


def test_baselines_are_no_cells(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    write_run(sweep, {"baseline": "gold", "variant": "gold"}, 0, SMALL)
    write_multirun(sweep, ["baseline=gold,star", "seed=0"])
    found = read(sweep)
    assert {run.cell for run in found.runs} == {*found.cells} and "gold" not in found.cells
    assert [(run.cell, run.seed, run.status) for run in found.baselines] == [
        ("gold", 0, "finished"),
        ("star", 0, "missing"),
    ]


def test_questions_are_read_where_a_run_has_left_them(folder: Path) -> None:
    run = write_run(folder, {}, 0, SMALL)
    row = {"split": "test", "id": "made/0", "question": "Who?", "references": ["Me", "I"]}
    (run / "questions.jsonl").write_text(json.dumps(row) + "\n")
    assert read(run).questions["made/0"].references == ("Me", "I")


DATA = Path(__file__).parents[1] / "data"


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("damaged", [False, True])
def test_files_of_every_schema_have_the_ids_of_their_questions(schema: int, damaged: bool, folder: Path) -> None:
    shutil.copytree(DATA / f"run-schema-{schema}", folder / "run")
    if damaged:
        with (folder / "run" / "outcomes.jsonl").open("a") as file:
            file.write("{\n")
    run = read(folder / "run").runs[0]
    assert run.complete is not damaged
    facts = [f"countries/GR/{fact}" for fact in ("capital", "continent", "currency")]
    assert run.outcomes["question"].tolist() == facts * 2
    assert run.outcomes["n"].tolist() == [0] * 3 + [1] * 3


def test_pairs_have_the_reason_why_they_were_dropped_from_schema_2_on(folder: Path) -> None:
    pairs = read(DATA / "run-schema-2").runs[0].pairs()
    assert set(pairs["question"]) == {f"countries/BD/{fact}" for fact in ("capital", "continent", "currency")}
    assert (pairs["dropped"].isna() == pairs["kept"]).all()
    run = write_run(folder, {"filter": "lenient"}, 3, SMALL)
    rows = [json.loads(line) for line in (run / "pairs.jsonl").read_text().splitlines()]
    old = [{name: row[name] for name in row if name not in ("question_id", "dropped")} for row in rows]
    for row, new in zip(old, rows, strict=True):
        row["question"] = new["question_id"]
    (run / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    frame = read(run).runs[0].pairs()
    assert frame["question"].tolist() == [row["question_id"] for row in rows]
    assert frame["dropped"].isna().all()


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run: give multirun/NAME"):
        read(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        read(tmp_path / "nowhere")


def complete(sweep: Path) -> design.Complete:
    found = read(sweep)
    best = design.complete(found.settings, found.cells, found.runs)
    assert best
    return best


def test_a_seed_that_one_cell_lacks_is_left_out(folder: Path) -> None:
    sweep = write_sweep(folder, Made(questions=3, iterations=1))
    shutil.rmtree(one(sweep, "FNE-seed1-*"))
    best = complete(sweep)
    assert (len(best.cells), best.seeds) == (8, (0, 2))


def test_a_level_is_left_out_if_that_leaves_more_runs(folder: Path) -> None:
    sweep = write_sweep(folder, Made(questions=3, iterations=1))
    for run in sweep.glob("FNE-*"):
        shutil.rmtree(run)
    best = complete(sweep)
    assert best.seeds == (0, 1, 2)
    assert len(best.cells) == 4 and "FNE" not in best.cells
    assert sum(len(levels) == 2 for levels in best.settings.values()) == 2


def test_no_complete_run_is_no_design(folder: Path) -> None:
    found = read(write_run(folder, {}, 0, SMALL, status="running"))
    assert design.complete(found.settings, found.cells, found.runs) is None
