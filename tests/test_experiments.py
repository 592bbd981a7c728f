"""Set-ups as a whole: they compose with what is chosen beside them, and run; a sweep says how far it is."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import test_keys
import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf
from test_run import CONF, EARNABLE, TINY, composed
from test_run import stasc as in_a_process
from zygote import Zygote

from stasc.cli import expect
from stasc.cli.build import build_experiment
from stasc.runs.execute import run
from stasc.settings import deciding
from stasc.sweeps import foresee
from stasc.tracking.console import Console
from stasc.units import duration_text

NAMES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PAPERS = {"paper_phi3": ("microsoft/Phi-3-mini-4k-instruct", 1), "paper_qwen": ("Qwen/Qwen2.5-1.5B-Instruct", 5)}
SMALL = (*TINY, "dataset.n_train=6", "iterations=1")


@pytest.fixture
def questions(tmp_path: Path) -> list[str]:
    """A file of one's own, in place of the set-up's dataset."""
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(20)))
    return ["dataset=jsonl", f"dataset.path={file}", "dataset.n_validation=2", "dataset.n_train=6", "dataset.n_test=3"]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_runs_with_another_model_and_a_file_of_ones_own(
    name: str, questions: list[str], tmp_path: Path
) -> None:
    given = ["model=tiny", "tracking=off", *EARNABLE, *questions, "iterations=1", "sampling.max_new_tokens=2"]
    given.append("finetune.truncated=keep")
    cfg = composed(
        f"experiment={name}",
        *given,
        f"store.dir={tmp_path}/store",
        "filter=all",
        "finetune.schedule=constant_with_warmup",
    )
    (tmp_path / "run").mkdir()
    summary = run(build_experiment(cfg), tmp_path / "run", "group", Console())
    assert summary["status"] == "finished"
    assert [bool(entry["finetune"]) for entry in summary["iterations"]] == [False, True]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_sets_no_setting_that_there_is_not(name: str) -> None:
    """Hydra would take one that is misspelt for a new one."""
    file = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    known = test_keys.settings_in_conf()
    assert not deciding.leaves({k: v for k, v in file.items() if k not in ("defaults", "hydra")}).keys() - known
    swept = file.get("hydra", {}).get("sweeper", {}).get("params", {})
    assert all(setting in known or (CONF / setting).is_dir() for setting in swept)


@pytest.mark.parametrize(("name", "model", "n_init"), [(name, *values) for name, values in PAPERS.items()])
def test_the_papers_set_up_has_the_papers_values(name: str, model: str, n_init: int) -> None:
    cfg = composed(f"experiment={name}")
    expected = {
        "model.path": model,
        "sampling.n_init": n_init,
        "sampling.n_corr": 5,
        "sampling.temperature": 0.6,
        "sampling.top_p": 0.9,
        "sampling.max_new_tokens": 256,
        "evaluation.temperature": None,  # as in sampling
        "evaluation.n_init": 1,
        "iterations": 10,
        "dataset._target_": "stasc.tasks.datasets.Nq",
        "dataset.n_train": 500,
        "dataset.n_test": 500,
        "finetune.learning_rate": 7e-6,
        "finetune.epochs": 1,
        "finetune.batch_size": 8,
        "finetune.schedule": "cosine",
        "finetune.warmup_ratio": 0.03,
        "finetune.weight_decay": 0.1,
        "pairing": "own",
        "sweep.name": name,
    }
    assert {leaf: OmegaConf.select(cfg, leaf) for leaf in expected} == expected


# Sweeps


def planned(*overrides: str) -> list[tuple[str, int]]:
    """Variant and seed of the jobs that the sweep would have, in order."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = GlobalHydra.instance().hydra.compose_config("config", list(overrides), RunMode.MULTIRUN)
        return [(cfg.variant, cfg.seed) for cfg, _ in expect.jobs(config)]


ALL = {
    init + filter_ + start + suffix for init in "FE" for filter_ in "IN" for start in "FE" for suffix in ("", "-lora")
}


def test_the_ablation_is_the_whole_factorial_with_one_seed_after_the_other() -> None:
    jobs = planned("experiment=ablation")
    assert len(jobs) == 16 * 3
    for seed in (0, 1, 2):
        assert {variant for variant, its in jobs[16 * seed : 16 * (seed + 1)] if its == seed} == ALL


def test_the_command_line_makes_an_experiments_sweep_smaller_or_larger() -> None:
    smaller = planned("experiment=ablation", "seed=3,4", "finetune=full", "filter=strict")
    assert smaller == [(f"{init}I{start}", seed) for seed in (3, 4) for start in "FE" for init in "FE"]
    assert len(planned("experiment=ablation", "filter=strict,lenient,all", "seed=0")) == 24
    assert len(planned("experiment=ablation", "sampling.n_corr=2,5")) == 96


def test_baselines_are_swept_into_the_folder_of_the_ablation() -> None:
    names = ("self-consistency", "gold", "star")
    assert planned("experiment=baselines") == [(name, seed) for seed in (0, 1, 2) for name in names]
    assert composed("experiment=baselines").sweep.name == composed("experiment=ablation").sweep.name == "ablation"


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_sweep_is_its_eight_variants(name: str) -> None:
    jobs = planned(f"experiment={name}")
    assert {variant for variant, _ in jobs} == {variant for variant in ALL if "-" not in variant}
    assert len(jobs) == 8


LINE = re.compile(r"^job (\d) of (\d): (\S+), seed (\d)(?:; .+ so far)?(?:; about (.+) to go)?$", re.M)


@pytest.mark.slow
def test_the_ablation_runs_without_more_words_and_goes_on_with_the_same_ones(command: Zygote, tmp_path: Path) -> None:
    """Neither --multirun nor sweep.name is needed. Before each job, it says which of how many it is."""
    given = ["experiment=ablation", *SMALL, *EARNABLE, "seed=0", "finetune=full", "start=evolving"]
    first = command.run(tmp_path, *given)
    assert first.returncode == 0, first.stderr
    told = LINE.findall(first.stderr)
    names = [("FIE", "0"), ("EIE", "0"), ("FNE", "0"), ("ENE", "0")]
    assert [line[:4] for line in told] == [(str(n), "4", *name) for n, name in enumerate(names, 1)]
    folders = sorted(path.parent for path in (tmp_path / "multirun" / "ablation").glob("*/summary.json"))
    assert len(folders) == 4
    assert not told[0][4], "nothing is known yet of how long it takes"
    assert told[1][4] and told[2][4]

    again = command.run(tmp_path, "--multirun", *given)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("this run is complete; nothing to do") == 4
    assert not any(line[4] for line in LINE.findall(again.stderr)), "nothing is left to do"


@pytest.mark.slow
def test_the_debug_experiment_takes_seconds_and_every_stage(command: Zygote, tmp_path: Path) -> None:
    ran = command.run(tmp_path, "experiment=debug")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("fine-tuning") == 2
    (summary,) = tmp_path.glob("outputs/*/*/summary.json")
    iterations = json.loads(summary.read_text())["iterations"]
    assert len(iterations) == 3
    assert any(entry["test"]["init_acc"] for entry in iterations), "the report of a sweep of it is not all zeros"


@pytest.mark.slow
def test_an_option_that_is_added_to_what_is_chosen_is_one_line(command: Zygote, tmp_path: Path) -> None:
    ran = command.run(tmp_path, "+experiment=debug")
    assert ran.returncode == 1
    assert ran.stderr == (
        "error: experiment is a group with an option chosen already: give experiment=..., without the +, and once\n"
    )


@pytest.mark.slow
def test_help_lists_the_experiments(tmp_path: Path) -> None:
    shown = in_a_process(tmp_path, "--help").stdout
    assert f"\nexperiment: {', '.join(NAMES)}\n" in shown


# How long it takes


@dataclass
class Had:
    """A store that has stages: seconds by kind and key."""

    stages: dict[tuple[str, str], float]
    seconds: float = field(init=False)

    def find(self, kind: str, key: str) -> Had | None:
        if (kind, key) not in self.stages:
            return None
        found = Had({})
        found.seconds = self.stages[kind, key]
        return found


def left(had: dict[tuple[str, str], float], jobs: Sequence[Sequence[tuple[str, str]]], done: int) -> float | None:
    store: Any = Had(had)
    return foresee.seconds_left([[(store, kind, key) for kind, key in stages] for stages in jobs], done)


A, B, C, D = (("initial", key) for key in "abcd")
TUNE_A, TUNE_B = (("finetune", key) for key in "ab")


def test_each_missing_stage_takes_as_long_as_those_of_its_kind_did() -> None:
    had = {A: 10.0, B: 20.0, TUNE_A: 100.0}
    assert left(had, [[A, B, TUNE_A], [A, C, TUNE_B]], 1) == 15 + 100


def test_a_stage_that_jobs_share_counts_once() -> None:
    assert left({A: 10.0}, [[A], [B, C], [C, D], [B, D]], 1) == 30


def test_nothing_is_said_before_each_kind_that_is_missing_has_been_seen() -> None:
    assert left({}, [[A, TUNE_A]], 0) is None
    assert left({A: 10.0}, [[A, TUNE_A]], 0) is None
    assert left({A: 10.0}, [[A]], 0) == 0


def test_what_a_job_that_is_over_left_out_is_not_waited_for() -> None:
    """As one that kept nothing, and ended early."""
    for done, expected in ((0, 20), (1, 10)):
        assert left({A: 10.0}, [[A, B], [A, C]], done) == expected


def test_durations_are_said_roughly() -> None:
    said = [duration_text(seconds) for seconds in (0.4, 29, 31, 100, 5900, 6120, 7200)]
    assert said == ["0 s", "29 s", "1 min", "2 min", "98 min", "1.7 h", "2.0 h"]


def test_every_order_of_the_values_is_the_same_jobs() -> None:
    orders = [
        planned("experiment=ablation", "seed=0", f"finetune={','.join(o)}")
        for o in itertools.permutations(("full", "lora"))
    ]
    assert set(orders[0]) == set(orders[1]) and len(orders[0]) == 16
