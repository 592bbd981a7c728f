"""The commands that would make a folder's runs again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from sweeps import Made, write_multirun, write_run, write_sweep

from stasc.report.data.reading import read
from stasc.report.design import level
from stasc.report.provenance import commands, products, swept

SMALL = Made(factors={"filter": ("strict", "lenient")}, questions=5, iterations=1, seeds=(0, 1))
ABLATION = {"seed": "0,1,2", "filter": "strict,lenient"}


def told(folder: Path) -> list[str]:
    sweep = read(folder)
    return commands(folder, [run for run in (*sweep.runs, *sweep.baselines) if run.folder])


def of_experiment(run: Path, name: str, params: dict[str, str]) -> None:
    """Makes a run's folder that of a job whose settings an experiment swept."""
    path = run / ".hydra" / "hydra.yaml"
    content = yaml.safe_load(path.read_text())
    content["hydra"]["overrides"]["task"].append(f"experiment={name}")
    content["hydra"]["sweeper"] = {"params": params}
    path.write_text(yaml.safe_dump(content))


def test_a_sweep_of_one_command_has_that_one(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    shutil.rmtree(next(sweep.glob("ENE-seed1-*")))
    write_multirun(sweep, ["filter=strict,lenient", "seed=0,1"])
    assert told(sweep) == ["python -m stasc.run --multirun filter=strict,lenient seed=0,1"]


def test_runs_of_an_earlier_command_are_told_by_what_they_add_up_to(folder: Path) -> None:
    sweep = write_sweep(folder, SMALL)
    run = write_run(sweep, {"baseline": "gold", "variant": "gold"}, 0, SMALL)
    (run / ".hydra" / "hydra.yaml").write_text(
        yaml.safe_dump({"hydra": {"overrides": {"task": ["seed=0", "baseline=gold"]}, "runtime": {"choices": {}}}})
    )
    write_multirun(sweep, ["baseline=gold", "seed=0"])
    assert told(sweep) == [
        "python -m stasc.run --multirun filter=strict,lenient seed=0,1",
        "python -m stasc.run --multirun baseline=gold seed=0",
    ]


def test_what_an_experiment_sweeps_anyway_is_not_typed(folder: Path) -> None:
    sweep = folder / "ablation"
    for seed in (0, 1):
        for name in ("strict", "lenient"):
            of_experiment(write_run(sweep, {"filter": name}, seed, SMALL), "ablation", ABLATION)
    write_multirun(sweep, ["baseline=gold", "seed=0"])
    assert told(sweep)[0] == "python -m stasc.run --multirun experiment=ablation seed=0,1"


def test_single_runs_have_a_command_each(folder: Path) -> None:
    for seed in (0, 1):
        write_run(folder, {"filter": "lenient"}, seed, SMALL)
    assert told(folder) == [f"python -m stasc.run filter=lenient seed={seed}" for seed in (0, 1)]


def test_values_that_a_shell_would_read_are_quoted(folder: Path) -> None:
    write_run(folder, {"filter": "lenient"}, 0, Made(questions=5, iterations=1, settings=("model.path='a b'",)))
    assert told(folder) == ["""python -m stasc.run filter=lenient seed=0 'model.path='"'"'a b'"'"''"""]


@pytest.mark.parametrize(
    "override",
    [
        *("seed=0,1,2", "seed=0, 1", "seed=range(3)", "seed=range(1,10,3)", "seed=range(3,0,-1)", "a=range(0,1,0.25)"),
        *("a=choice(x,y)", "a=choice(x)", "a=range(start=1,stop=4)", "a=true,false", "a=null,1", "a=1e-4,1.50"),
        *("a='x,y'", "a='x,y',z", """a="q'",b""", r"a=x\,y,z", "a=[1,2]", "a=[1,2],[3,4]", "a={b:1,c:2},{b:3}"),
        *("~reward", "+reward={_target_: mine.f, _partial_: true}", "a="),
    ],
)
def test_an_override_has_the_values_that_hydra_sweeps(override: str) -> None:
    name, _, value = override.partition("=")
    parsed = OverridesParser.create().parse_override(override)
    expected = [*parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [value]
    assert swept([override]) == {name.lstrip("~+"): tuple(map(level, expected))}


@pytest.mark.parametrize("override", ["a=interval(0,1)", "a=glob(*)", "a=range(0,1,0)", "a=range(x)"])
def test_a_sweep_without_a_list_of_values_is_left_out(override: str) -> None:
    assert swept([override, "seed=0"]) == {"seed": ("0",)}


@pytest.mark.parametrize(
    ("jobs", "merged"),
    [
        (["EI", "EN", "FI", "FN"], [{"init": ("E", "F"), "filter": ("I", "N")}]),
        (["EI", "EN", "FI"], [{"init": ("E", "F"), "filter": ("I",)}, {"init": ("E",), "filter": ("N",)}]),
        (["EI", "FN"], [{"init": ("E",), "filter": ("I",)}, {"init": ("F",), "filter": ("N",)}]),
    ],
)
def test_jobs_are_merged_into_sweeps_that_run_no_others(
    jobs: list[str], merged: list[dict[str, tuple[str, ...]]]
) -> None:
    assert products([{"init": (job[0],), "filter": (job[1],)} for job in jobs]) == merged
