"""The panels of the dashboard: metrics that runs log, by choices that vary, of finished runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from specified import bars, grids, panels, shown, titles, written
from tracked import only, record, records_of

from stasc.settings.names import leaves

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")


def test_every_name_that_it_shows_is_one_that_runs_log(mirrored: Path, tmp_path: Path) -> None:
    logged: dict[str, set[str]] = {"history": set(), "summary": set(), "config": set()}
    for files in [*mirrored.glob("multirun/mirrored/*/wandb/offline-run-*"), *mirrored.glob("baseline/wandb/off*")]:
        records = records_of(files)
        logged["config"].update(*(leaves(part["config"]["update"]) for part in only(records, "run")))
        logged["history"].update(*(part["item"] for part in only(records, "history")))
        logged["summary"].update(*(part["update"] for part in only(records, "summary")))
    by_setting = written(tmp_path, "--by", "sampling.n_corr", "finetune.learning_rate", "model", "seed")
    for spec in (written(tmp_path), by_setting):
        names = shown(spec)
        assert {kind: names[kind] - logged[kind] for kind in logged} == {kind: set() for kind in logged}
        assert {f"{name}.path" for name in names["table"]} <= logged["history"]


def test_it_looks_up_each_name_in_the_right_place(tmp_path: Path) -> None:
    names = shown(written(tmp_path, "--by", "init", "sampling.n_corr"))
    assert {"iteration", "accuracy/initial", "train/global_step", "train/loss"} <= names["history"]
    assert {"final/correction", "final/gain", "total/kept", "status"} <= names["summary"]
    assert names["config"] == {"choice/baseline", "choice/init", "sampling.n_corr", "seed"}
    assert names["table"] == {"tables/test", "tables/pairs"}


def test_it_begins_with_both_accuracies_in_one_chart(tmp_path: Path) -> None:
    first, *_ = panels(written(tmp_path))
    assert first["config"]["metrics"] == ["accuracy/initial", "accuracy/correction"]
    assert (first["layout"]["w"], first["layout"]["y"]) == (24, 0)


def test_its_panels_go_from_results_to_samples(tmp_path: Path) -> None:
    assert titles(written(tmp_path, "--by", "init")) == [
        "Initial and correction accuracy",
        "Gain: correction minus initial accuracy",
        "Wrong → right",
        "Right → wrong",
        "Share of pairs kept",
        "Training loss by optimizer step",
        "init: correction accuracy",
        "init: gain",
        "Choices and accuracy, one line per run",
        "tables/test",
        "tables/pairs",
    ]


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ([], "jobType"),
        (["--by", "filter", "init"], "choice/filter.value"),
        (["--by", "finetune.learning_rate"], "finetune.value.learning_rate"),
        (["--by", "seed"], "seed.value"),
    ],
)
def test_curves_are_means_by_variant_or_by_the_first_setting_that_is_given(
    options: list[str], by: str, tmp_path: Path
) -> None:
    curves = [panel["config"] for panel in panels(written(tmp_path, *options)) if "xAxis" in panel["config"]]
    assert {(curve["groupBy"], curve["groupAgg"], curve["groupArea"]) for curve in curves} == {(by, "mean", "minmax")}
    assert min(curve["limit"] for curve in curves) > 16, "W&B shows 10 lines by default; the ablation has 16 variants"
    axes = {metric: curve["xAxis"] for curve in curves for metric in curve["metrics"]}
    assert axes.pop("train/loss") == "train/global_step"
    assert {*axes.values()} == {"iteration"}


def test_both_outcomes_are_shown_by_each_setting_that_is_given(tmp_path: Path) -> None:
    spec = written(tmp_path, "--by", "model", "sampling.n_corr", "seed", "model")
    keys = ("choice/model.value", "sampling.value.n_corr", "seed.value")
    assert bars(spec) == [(outcome, key) for outcome in ("final/correction", "final/gain") for key in keys]


def test_without_known_runs_the_four_design_choices_are_shown(tmp_path: Path) -> None:
    keys = [f"choice/{name}.value" for name in ("init", "filter", "start", "finetune")]
    assert [key for metric, key in bars(written(tmp_path)) if metric == "final/gain"] == keys


def test_what_varies_is_read_from_the_folder_of_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = tmp_path / "multirun" / "ablation"
    for name, n_corr in (("a", 1), ("b", 2)):
        record(sweep / name, {"sampling": {"n_corr": n_corr}, "seed": n_corr}, {"init": "fixed"})
    monkeypatch.chdir(tmp_path)
    for options in (["--group", "ablation"], ["--runs", str(sweep)]):
        spec = written(tmp_path, *options)
        assert bars(spec) == [("final/correction", "sampling.value.n_corr"), ("final/gain", "sampling.value.n_corr")]
        assert "config:choice/init.value" not in str(spec)


def test_runs_that_differ_only_in_their_seeds_get_no_bars(tmp_path: Path) -> None:
    for seed in (0, 1):
        record(tmp_path / "sweep" / str(seed), {"seed": seed}, {"init": "fixed"})
    spec = written(tmp_path, "--runs", str(tmp_path / "sweep"))
    assert [panel["viewType"] for panel in panels(spec)] == ["Run History Line Plot"] * 6 + ["Weave"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "finetune.lr"], "error: --by finetune.lr: no such setting; did you mean finetune.learning_rate?"),
        (["--by", "choice/init"], "error: --by choice/init: expected a config group or setting, such as init or"),
    ],
)
def test_a_setting_that_no_run_has_is_refused(options: list[str], message: str, tmp_path: Path) -> None:
    record(tmp_path / "sweep" / "a", {"finetune": {"learning_rate": 1e-5}}, {"init": "fixed"})
    with pytest.raises(SystemExit, match=re.escape(message)):
        written(tmp_path, "--runs", str(tmp_path / "sweep"), *options)


def test_a_synonym_is_refused_without_known_runs_too(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: --by lr: no such setting; did you mean finetune\.learning_rate\?"):
        written(tmp_path, "--by", "lr")


def test_a_folder_without_finished_runs_is_refused(tmp_path: Path) -> None:
    record(tmp_path / "sweep" / "a", {}, {}, status="failed")
    for folder in ("sweep", "nowhere"):
        with pytest.raises(SystemExit, match=rf"error: --runs {tmp_path / folder}: no finished run; expected the fol"):
            written(tmp_path, "--runs", str(tmp_path / folder))


def test_no_two_plots_lie_on_each_other_and_none_is_wider_than_the_report(tmp_path: Path) -> None:
    for grid in grids(written(tmp_path)):
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        cells = [
            (place["x"] + x, place["y"] + y) for place in places for x in range(place["w"]) for y in range(place["h"])
        ]
        assert len({*cells}) == len(cells) and max(x for x, _ in cells) < 24


@pytest.mark.parametrize(
    ("options", "filters"),
    [
        ([], []),
        (["--group", "2026-11-23_01-02-03"], [("group", "=", "2026-11-23_01-02-03", "AND")]),
    ],
)
def test_all_of_it_shows_only_finished_runs_of_the_group(
    options: list[str], filters: list[Any], tmp_path: Path
) -> None:
    spec = written(tmp_path, *options)
    runsets = [one for grid in grids(spec) for one in grid["runSets"]]
    for one in runsets:
        parts = one["filters"]["filters"]
        assert {part["key"]["section"] for part in parts} == {"run"} and not any(part["disabled"] for part in parts)
        found = [(part["key"]["name"], part["op"], part["value"], part.get("connector")) for part in parts]
        assert found == [("state", "=", "finished", None), *filters]
    assert len(runsets) == 3
    assert spec["displayName"] == ("STaSC 2026-11-23_01-02-03" if options else "STaSC all runs")
