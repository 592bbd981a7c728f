"""Sweeps compute each stage once, never repeat finished work, and survive jobs that fail."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_lm import Silent, fake_experiment, run_fake, sha256, use_fakes
from test_run import EARNABLE, TINY, experiment, lines, run_tiny, without_times
from zygote import MEMORY, Ran, Zygote

from stasc.models.live import LiveModel
from stasc.runs.execute import run
from stasc.runs.folder import earlier
from stasc.tracking import read

SMALL = ("model=tiny", "tracking=off", "dataset.n_train=6", "dataset.n_test=3", "sampling.max_new_tokens=4")
SMALL = (*SMALL, "finetune.truncated=keep")


@pytest.fixture
def cwd() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as name:
        yield Path(name)


def stages(*folders: Path) -> list[dict[str, Any]]:
    """Returns the stages in the journals of run folders."""
    return [event for path in folders for event in read(path / "journal.jsonl") if event["event"] == "stage"]


def computed(*folders: Path) -> list[dict[str, Any]]:
    return [stage for stage in stages(*folders) if not stage["reused"]]


def jobs(folder: Path, name: str) -> list[Path]:
    return sorted(path.parent for path in (folder / "multirun" / name).glob("*/journal.jsonl"))


# What a sweep shares


@pytest.mark.slow
def test_sixteen_variants_compute_each_stage_once(command: Zygote, cwd: Path) -> None:
    """The counts for init x filter x start x finetune, 2 options each, in 3 iterations from M_0.

    M_0 is one model; M_1 depends on filter and finetune: 4; M_2 and M_3 on start and on init as well: 16 each.
    - Initial answers on train: iteration 1 asks M_0, and all share that: 1. Only init=evolving asks again: the 4 M_1,
      and the M_2 of its 8 variants. 1 + 4 + 8 = 13.
    - Corrections on train, by M_0: 1; by M_1, of M_0's answers or of its own: 4 x 2 = 8; by M_2: 16. 25.
    - Fine-tunings: 4, 16, 16. 36.
    - Corrections on test, by M_0: 1; by M_1, of M_0's answers or of its own: 8; by M_2 and M_3: 16 each. 41.
    """
    axes = ("init=fixed,evolving", "filter=strict,lenient", "start=fixed,evolving", "finetune=full,lora")
    ran = command.run(cwd, "--multirun", *SMALL, *EARNABLE, *axes, "iterations=3", "sweep.name=paper")
    assert ran.returncode == 0, ran.stderr
    assert "could not be foreseen" not in ran.stdout
    folders = jobs(cwd, "paper")
    assert len(folders) == 16
    for folder in folders:
        entries = json.loads((folder / "summary.json").read_text())["iterations"]
        assert [entry["n"] for entry in entries] == [0, 1, 2, 3]
        assert all(entry["train"]["kept"] > 0 for entry in entries[1:]), "else there are fewer models to count"

    once = computed(*folders)
    count = Counter((stage["split"], stage["kind"]) for stage in once)
    assert count["train", "initial"] == 13
    assert count["train", "correction"] == 25
    assert count["train", "finetune"] == 36
    assert count["test", "correction"] == 41
    assert count["train", "model"] == 36, "weights that a later variant needs were dropped, and trained again"
    assert max(Counter((stage["kind"], stage["key"]) for stage in once).values()) == 1
    kept = {path.name for path in (cwd / "store" / "model").iterdir()}
    assert len(kept) == 16, "the last models stay, and no others"


@pytest.mark.slow
def test_a_sweep_without_a_name_expects_its_jobs_in_the_folder_that_they_get(command: Zygote, cwd: Path) -> None:
    """The folder is named after the time, which passes while the jobs are foreseen."""
    ran = command.run(cwd, "--multirun", *SMALL, "seed=0,1,2", "iterations=0")
    assert ran.returncode == 0, ran.stderr
    expected = {json.loads(path.read_text())["folder"] for path in (cwd / "store" / "leases").glob("*.json")}
    assert expected == {str(path.parent.resolve()) for path in cwd.glob("multirun/*/*/summary.json")}


AXES = ("init=fixed,evolving", "filter=strict,lenient")
FOUR = ("--multirun", *SMALL, *EARNABLE, "iterations=1", "sweep.name=four")


def test_a_sweep_keeps_what_its_first_command_declared(command: Zygote, cwd: Path) -> None:
    small = ("--multirun", *SMALL, "iterations=0", "sweep.name=told")
    first = command.run(cwd, *small, "filter=strict,lenient", "+token=a1b2c3d4e5,f6a7b8c9d0")
    assert "Callback" not in first.stderr, first.stderr
    declared = cwd / "multirun" / "told" / "declared.json"
    content = {"schema": 1, "seeds": [0], "swept": {"filter": ["strict", "lenient"], "token": "***"}}
    assert json.loads(declared.read_text()) == content
    later = command.run(cwd, *small, "filter=strict", "seed=0,1,2")
    assert later.returncode == 0, later.stderr
    assert json.loads(declared.read_text()) == content


def test_a_sweep_of_an_earlier_version_declared_nothing(command: Zygote, cwd: Path) -> None:
    small = ("--multirun", *SMALL, "iterations=0", "sweep.name=told")
    declared = cwd / "multirun" / "told" / "declared.json"
    assert command.run(cwd, *small, "seed=0").returncode == 0
    declared.unlink()
    assert command.run(cwd, *small, "seed=0,1").returncode == 0
    assert not declared.exists()


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_is_not_finished(command: Zygote, cwd: Path) -> None:
    first = command.run(cwd, *FOUR, *AXES)
    assert first.returncode == 0, first.stderr
    folders = jobs(cwd, "four")
    assert [folder.name[:10] for folder in folders] == ["EIE-seed0-", "ENE-seed0-", "FIE-seed0-", "FNE-seed0-"]
    assert all(len(folder.name) == 18 for folder in folders), "the last eight are a hash of the settings"
    done = len(computed(*folders))
    journals = [(folder / "journal.jsonl").read_bytes() for folder in folders]

    again = command.run(cwd, *FOUR, *AXES)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("this run is complete; nothing to do") == 4
    shown = again.stdout.splitlines()
    assert len([line for line in shown if "HYDRA" not in line]) == 4 + 3 + 4 + 1, "a line a job, and the sweep's table"
    assert [line.split()[0] for line in shown if line.startswith(("E", "F"))] == ["FIE,", "FNE,", "EIE,", "ENE,"]
    assert shown[-1] == "results: multirun/four"
    assert [(folder / "journal.jsonl").read_bytes() for folder in folders] == journals
    assert again.seconds < first.seconds
    assert table(again) == table(first)

    more = command.run(cwd, *FOUR, "init=evolving,fixed", "filter=lenient,maintaining,strict")
    assert more.returncode == 0, more.stderr
    assert more.stderr.count("this run is complete; nothing to do") == 4
    assert [(folder / "journal.jsonl").read_bytes() for folder in folders] == journals
    new = sorted({*jobs(cwd, "four")} - {*folders})
    assert [folder.name[:4] for folder in new] == ["EME-", "FME-"]
    assert set(table(first)) < set(table(more)) and len(table(more)) == 6
    assert 0 < len(computed(*new)) < done
    assert max(Counter((stage["kind"], stage["key"]) for stage in computed(*folders, *new)).values()) == 1


def table(ran: Ran) -> list[str]:
    """Returns the rows of a sweep's final table, sorted."""
    return sorted(" ".join(line.split()) for line in ran.stdout.splitlines() if "-seed" in line and "finished" in line)


# Jobs that fail

MINE = """\
import os, sys, weakref
from pathlib import Path
from stasc.models.live import LiveModel
from test_run import even_first_byte

networks = []
adopt, run_load = LiveModel.adopt, LiveModel.load


def adopted(self, model, network, dtype):
    networks.append((weakref.ref(self), weakref.ref(network)))
    adopt(self, model, network, dtype)


def loaded(self, model, dtype=None):
    others = sum(network() is not None for live, network in networks if live() is not self)
    with Path("held").open("a") as file:
        file.write(f"{others}\\n")
    return run_load(self, model, dtype)


LiveModel.adopt, LiveModel.load = adopted, loaded


def reward(answer, references, how):
    if how == "raise":
        raise KeyError("no such answer")
    if how == "exit":
        sys.exit("enough of this")
    if how == "die" and Path("die").exists():
        os._exit(9)
    return even_first_byte(answer, references)
"""
CHOSEN = {"_target_": "mine.reward", "_partial_": True, "how": "well"}
JOBS = {  # the options of a group of settings, one a job
    "a_healthy": {},
    "b_raises": {"reward": {**CHOSEN, "how": "raise"}},
    "c_exits": {"reward": {**CHOSEN, "how": "exit"}},
    "d_explodes": {"finetune": {"learning_rate": 1e30, "batch_size": 1, "epochs": 4}},
    "e_misses": {"model": {"path": "/no/such/model"}},
    "f_healthy": {"seed": 1},
}


@pytest.mark.slow
def test_failing_jobs_are_told_and_the_others_complete(command: Zygote, cwd: Path) -> None:
    (cwd / "mine.py").write_text(MINE)
    for name, settings in JOBS.items():
        file = cwd / "options" / "job" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# @package _global_\n{json.dumps({'variant': name, 'reward': CHOSEN, **settings})}\n")
    given = ["--config-dir", "options", "--multirun", *SMALL, "iterations=1", "~reward", f"+job={','.join(JOBS)}"]
    ran = command.run(cwd, *given, "sweep.name=six")
    assert ran.returncode == 1
    folders = {path.name.split("-")[0]: path for path in (cwd / "multirun" / "six").iterdir() if path.is_dir()}
    assert folders.keys() == JOBS.keys()
    (unforeseen,) = [line for line in ran.stdout.splitlines() if "could not be foreseen" in line]
    assert f"{folders['e_misses'].name} could not be foreseen: model.path=/no/such/model" in unforeseen
    causes = {
        "b_raises": "the reward raised KeyError",
        "c_exits": "enough of this",
        "d_explodes": "lower finetune.learning_rate",
        "e_misses": "model.path=/no/such/model",
    }
    assert "6 jobs, 4 failed" in ran.stdout
    for name, folder in folders.items():
        (row,) = [line for line in ran.stdout.splitlines() if line.rstrip().endswith(f" {folder.name}")]
        assert row.split()[:2] == [name, "failed" if name in causes else "finished"]
        log = (folder / "run.log").read_text() if (folder / "run.log").exists() else ""
        assert ("Traceback" in log) == (name in causes)
        if name in causes:
            (why,) = [line for line in ran.stdout.splitlines() if line.startswith(f"{folder.name}: ")]
            assert causes[name] in why
            assert causes[name] in log and not any(cause in log for job, cause in causes.items() if job != name)
    status = {
        name: json.loads((folder / "summary.json").read_text())["status"]
        for name, folder in folders.items()
        if name != "e_misses"
    }
    assert status.pop("d_explodes") == "failed_nonfinite"
    assert Counter(status.values()) == {"finished": 2, "failed": 2}
    held = (cwd / "held").read_text().split()
    assert len(held) > 10 and set(held) == {"0"}, "a job began while the network of an earlier one was in memory"


@pytest.mark.slow
def test_after_a_job_that_dies_the_same_command_recomputes_nothing(command: Zygote, cwd: Path) -> None:
    (cwd / "mine.py").write_text(MINE)
    (cwd / "die").touch()
    reward = ["~reward", "+reward={_target_: mine.reward, _partial_: true}", "+reward.how=well,die"]
    given = ["--multirun", *SMALL, *reward, "iterations=1", "sweep.name=two"]
    assert command.run(cwd, *given).returncode == 9
    assert len(jobs(cwd, "two")) == 2
    before = [path for path in jobs(cwd, "two") if (path / "model").exists()]
    assert len(before) == 1
    (cwd / "die").unlink()
    ran = command.run(cwd, *given)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("this run is complete; nothing to do") == 1
    folders = jobs(cwd, "two")
    assert len(folders) == 2
    once = Counter((stage["kind"], stage["key"]) for stage in computed(*folders))
    assert max(once.values()) == 1
    assert len(table(ran)) == 2


# A run again


@pytest.mark.parametrize("again", ["run", "other"])
def test_a_finished_run_again_computes_nothing_and_loads_no_weights(
    again: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own folder and in another one."""
    chosen = experiment(*EARNABLE, "iterations=1", f"store.dir={tmp_path}/store")
    (tmp_path / "run").mkdir()
    first = run(chosen, tmp_path / "run", "group", Silent())
    began = stages(tmp_path / "run")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(LiveModel, "load", lambda self, model, dtype=None: pytest.fail("weights were loaded"))
    second = run(chosen, tmp_path / again, "group", Silent())
    assert without_times(second) == without_times(first)
    if again == "run":
        assert stages(tmp_path / "run") == began
        return
    told = stages(tmp_path / "other")
    assert [stage["key"] for stage in told if stage["kind"] != "model"] == [
        stage["key"] for stage in began if stage["kind"] != "model"
    ]
    assert all(stage["reused"] for stage in told)
    for name in ("outcomes.jsonl", "pairs.jsonl", "model/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# No drift


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for runs that load no model."""
    use_fakes(monkeypatch, tmp_path / "base")
    return tmp_path / "run"


@pytest.mark.slow
def test_a_folder_that_is_named_twice_holds_one_run(command: Zygote, cwd: Path) -> None:
    given = [*TINY, "iterations=0", "hydra.run.dir=mine"]
    assert command.run(cwd, *given).returncode == 0
    before = (cwd / "mine" / "summary.json").read_bytes()
    ran = command.run(cwd, *given, "filter.margin=0.1", "seed=1")
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: {cwd / 'mine'} holds another run, which this one must not be mixed with (")
    assert "seed: 0 -> 1" in line and "filter.margin" in line
    assert (cwd / "mine" / "summary.json").read_bytes() == before
    assert command.run(cwd, *given, "store.explain=true").returncode == 0
    assert (cwd / "mine" / "summary.json").read_bytes() == before


def test_a_changed_setting_is_named_before_anything_is_mixed(fakes: Path) -> None:
    run_fake(fake_experiment("iterations=1"), fakes)
    before = {path: path.read_bytes() for path in fakes.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds another run.*\(filter\.margin: 0\.0 -> 0\.1\): choose another"):
        run_fake(fake_experiment("iterations=1", "filter.margin=0.1"), fakes)
    with pytest.raises(ValueError, match=r"\(finetune\.learning_rate: 5e-05 -> 0\.1; iterations: 1 -> 2\)"):
        run_fake(fake_experiment("iterations=2", "finetune.learning_rate=0.1"), fakes)
    with pytest.raises(ValueError, match=r"\(patience: 1 -> 2\)"):
        run_fake(fake_experiment("iterations=1", "patience=2"), fakes)
    assert {path: path.read_bytes() for path in fakes.rglob("*") if path.is_file()} == before


def test_a_setting_that_changes_no_result_changes_no_folder(fakes: Path) -> None:
    expected = run_fake(fake_experiment("iterations=1"), fakes)
    assert run_fake(fake_experiment("iterations=1", "store.keep_models=all", "sweep.name=other"), fakes) == expected


def test_must_resume_wants_a_run_and_never_wants_none(fakes: Path) -> None:
    with pytest.raises(ValueError, match=r"store\.resume=must: .* holds no run to resume; set store\.resume=auto"):
        run_fake(fake_experiment("iterations=1", "store.resume=must"), fakes)
    assert not (fakes / "journal.jsonl").exists()
    expected = run_fake(fake_experiment("iterations=1", "store.resume=never"), fakes)
    with pytest.raises(ValueError, match=r"store\.resume=never: .* holds a run already"):
        run_fake(fake_experiment("iterations=1", "store.resume=never"), fakes)
    assert run_fake(fake_experiment("iterations=1", "store.resume=must"), fakes) == expected
    with pytest.raises(ValueError, match=r"holds another run.*\(seed: 0 -> 1\)"):
        run_fake(fake_experiment("iterations=1", "store.resume=must", "seed=1"), fakes)


def test_changed_data_under_the_same_name_are_another_run(fakes: Path) -> None:
    file = fakes.parent / "questions.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in range(20)]
    given = ["dataset=jsonl", f"dataset.path={file}", "dataset.n_validation=2", "iterations=1"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_fake(fake_experiment(*given), fakes)
    for row in rows:
        row["question"] = row["question"].replace("What", "How much")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"holds another run.*\(of other data, model files or code\)"):
        run_fake(fake_experiment(*given), fakes)


@pytest.mark.parametrize("schema", [1, 2])
def test_a_run_of_an_earlier_release_is_still_read(schema: int) -> None:
    """Made by `run_fake` when its schema was new. A change that makes it unreadable has to raise the schema."""
    golden = Path(__file__).parents[1] / "data" / f"run-schema-{schema}"
    there = earlier(golden)
    started, summary = there.started, there.summary
    assert started and summary
    assert summary["schema"] == schema
    assert summary["status"] == "finished"
    assert started["key"] == summary["key"]
    assert started["config"]["filter"]["margin"] == 0
    assert {"versions", "machine", "commit", "data", "name", "group", "variant", "seed"} <= started.keys()
    assert [entry["n"] for entry in summary["iterations"]] == [0, 1]
    assert summary["iterations"][1]["test"].keys() >= {"init_acc", "corr_acc", "questions"}
    told = stages(golden)
    assert [stage["kind"] for stage in told if stage["n"] == 0] == ["initial", "correction", "evaluation"]
    assert all(len(stage["key"]) == 64 for stage in told)
    assert {stage["reused"] for stage in told} == {False, True}


# Nothing kept


def nothing(answer: str, references: object) -> float:
    return 0.0


NOTHING = ("~reward", "+reward={_target_: test_sweep.nothing, _partial_: true}", "filter=strict")


def fraction(answer: str, references: object) -> float:
    """A reward that is different for every answer."""
    return int(sha256(answer)[:12], 16) / 16**12


FRACTION = ("~reward", "+reward={_target_: test_sweep.fraction, _partial_: true}", "filter=strict")


def gains(folder: Path, n: int) -> list[float]:
    """Returns the reward gains of an iteration's corrections, the largest first."""
    return sorted((line["r2"] - line["r1"] for line in lines(folder / "pairs.jsonl") if line["n"] == n), reverse=True)


@pytest.mark.parametrize(("init", "patience"), [("evolving", 1), ("evolving", 2), ("evolving", 3), ("fixed", 2)])
def test_iterations_that_keep_nothing_carry_the_model_over_until_patience_ends(
    init: str, patience: int, fakes: Path
) -> None:
    run_fake(fake_experiment(*NOTHING, f"init={init}", "iterations=3", f"patience={patience}"), fakes)
    summary = json.loads((fakes / "summary.json").read_text())
    assert summary["status"] == ("stopped_empty" if patience < 3 else "finished")
    assert [entry["n"] for entry in summary["iterations"]] == list(range(patience + 1))
    assert [entry["train"]["kept"] for entry in summary["iterations"][1:]] == [0] * patience
    assert [entry["finetune"] for entry in summary["iterations"]] == [None] * (patience + 1)
    told = stages(fakes)
    assert not any(stage["kind"] in ("finetune", "model") for stage in told)
    tested = [stage["reused"] for stage in told if stage["split"] == "test"]
    assert tested[:3] == [False] * 3 and all(tested[3:]), "M_0 was tested already"
    y1, y2 = ({line[name] for line in lines(fakes / "pairs.jsonl")} for name in ("y1", "y2"))
    assert len(y1) == (6 * patience if init == "evolving" else 6), "3 questions, 2 answers, anew in each iteration"
    assert len(y2) == 12 * patience, "2 corrections of each, with new noise in each iteration"


def test_an_iteration_after_an_empty_one_goes_on_from_the_model_before_it(fakes: Path) -> None:
    empty = [*FRACTION, "iterations=2", "patience=2", "filter.margin=0.999"]
    seed = next(
        seed
        for seed in range(20)
        if run_fake(fake_experiment(*empty, f"seed={seed}"), fakes / str(seed))
        and gains(fakes / str(seed), 1)[0] < gains(fakes / str(seed), 2)[0]
    )
    margin = gains(fakes / str(seed), 1)[0]
    given = [*FRACTION, "iterations=2", "patience=2", f"filter.margin={margin}", f"seed={seed}"]
    run_fake(fake_experiment(*given), fakes / "other")
    summary = json.loads((fakes / "other" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["iterations"][1]["train"]["kept"] == 0
    assert summary["iterations"][2]["train"]["kept"] == sum(gain > margin for gain in gains(fakes / str(seed), 2)) > 0
    assert [stage["n"] for stage in stages(fakes / "other") if stage["kind"] == "finetune"] == [2]


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_one_kept_pair_is_less_than_a_batch_and_is_trained_on(finetune: str, tmp_path: Path) -> None:
    given = [*FRACTION, "model.path=tiny:0", "iterations=1", f"finetune={finetune}", f"store.dir={tmp_path}/store"]
    run_tiny(tmp_path / "none", *given, "filter.margin=0.999")
    first, second = gains(tmp_path / "none", 1)[:2]
    assert first > second > 0
    summary = run_tiny(tmp_path / "one", *given, f"filter.margin={second}")
    assert summary["status"] == "finished"
    assert summary["iterations"][1]["train"]["kept"] == 1
    assert summary["iterations"][1]["finetune"]["examples"] == 1
    assert summary["iterations"][1]["finetune"]["steps"] == 1
