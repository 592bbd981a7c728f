"""The command line, from overrides to the run's folder."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import __version__ as hydra_version
from hydra.utils import get_object
from omegaconf import DictConfig
from zygote import Zygote

from stasc import __version__ as stasc_version
from stasc.cli.build import build_experiment
from stasc.cli.compose import compose
from stasc.errors import NonFiniteError
from stasc.machine.paths import CONF
from stasc.models.live import LiveModel
from stasc.records import OptimizerStep
from stasc.runs.execute import run
from stasc.runs.experiment import Experiment
from stasc.runs.folder import RunFolder
from stasc.tasks.rewards import normalise
from stasc.tracking import read
from stasc.tracking.console import Console

TINY = (
    *("model=tiny", "tracking=off", "dataset.n_train=3", "dataset.n_test=3", "sampling.max_new_tokens=4"),
    "finetune.truncated=keep",  # random weights end no answer
)
OPTIONS = [
    (folder.parent.name, folder.stem) for folder in sorted(CONF.glob("*/*.yaml")) if folder.parent.name != "hydra"
]
PARTS = [(group, option) for group, option in OPTIONS if group not in ("baseline", "experiment")]


def even_first_byte(answer: str, references: Sequence[str]) -> float:
    """A reward that random weights can earn."""
    return float(bool(answer) and answer.encode("utf-8", "replace")[0] % 2 == 0)


even_first_byte.key = lambda answer: tuple(normalise(answer))  # type: ignore[attr-defined]  # for votes
EARNABLE = ("~reward", "+reward={_target_: test_run.even_first_byte, _partial_: true}")


def composed(*overrides: str) -> DictConfig:
    return compose(overrides)


def experiment(*overrides: str) -> Experiment:
    return build_experiment(composed(*TINY, *overrides))


def run_tiny(folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(parents=True)
    return run(experiment(*EARNABLE, f"store.dir={folder}.store", *overrides), folder, "group", Console())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stasc(cwd: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stasc.run", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        **options,
    )


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    return {**summary, "iterations": [{**entry, "seconds": None, "reused": None} for entry in summary["iterations"]]}


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all combinations of choices, many of which share their first iterations."""
    return tmp_path_factory.mktemp("shared") / "store"


@pytest.mark.slow
@pytest.mark.parametrize("finetune", ["full", "lora", "qlora"])
@pytest.mark.parametrize("start", ["fixed", "evolving"])
@pytest.mark.parametrize("filter_", ["strict", "lenient", "maintaining"])
@pytest.mark.parametrize("init", ["fixed", "evolving"])
def test_every_combination_of_choices_runs(
    init: str, filter_: str, start: str, finetune: str, tmp_path: Path, shared_store: Path
) -> None:
    choices = [f"init={init}", f"filter={filter_}", f"start={start}", f"finetune={finetune}"]
    shared = [f"store.dir={shared_store}", "store.keep_models=all"]
    summary = run_tiny(tmp_path / "run", *choices, *shared, "iterations=2", "patience=2", "dataset.n_train=6")
    letters = {"fixed": "F", "evolving": "E", "strict": "I", "lenient": "N", "maintaining": "M"}
    assert summary["variant"] == letters[init] + letters[filter_] + letters[start] + (
        "" if finetune == "full" else f"-{finetune}"
    )
    assert summary["status"] == "finished"
    assert [entry["n"] for entry in summary["iterations"]] == [0, 1, 2]
    for entry in summary["iterations"][1:]:
        assert entry["train"]["pairs"] == 6 * 2 * 2
        assert entry["train"]["kept"] > 0
        assert entry["finetune"]["examples"] == entry["train"]["kept"]


@pytest.mark.parametrize(("group", "option"), PARTS, ids=lambda value: str(value))
def test_every_option_composes_and_builds(
    group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) + "\n" for i in range(20)))
    nq = tmp_path / "nq"  # a local copy, in place of the hub's
    nq.mkdir()
    for split in ("train", "validation"):
        rows = [{"question": f"{split} {i}", "answer": [f"a{i}"]} for i in range(20)]
        (nq / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    needed = {
        ("dataset", "nq"): [f"dataset.path={nq}", "dataset.n_validation=4"],
        ("dataset", "jsonl"): [f"dataset.path={questions}", "dataset.n_validation=2"],
        ("model", "custom"): ["model.path=a/hub-name"],
        ("target", "initial"): ["filter=all"],
        ("target", "gold"): ["filter=all"],
    }
    built = experiment(f"{group}={option}", *needed.get((group, option), []))
    target = yaml.safe_load((CONF / group / f"{option}.yaml").read_text()).get(
        "_target_", "stasc.models.config.ModelConfig"
    )
    if group != "dataset":
        assert type(getattr(built, group)) is get_object(target)
    assert len(built.train.questions) == 3
    assert len(built.test.questions) == 3


def test_the_folder_holds_every_pair_and_every_outcome(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path / "run", "iterations=2", "filter=lenient", "sampling.n_init=3")
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text()) == summary
    pairs, outcomes = lines(folder / "pairs.jsonl"), lines(folder / "outcomes.jsonl")
    assert len(pairs) == 2 * 3 * 3 * 2
    assert len(outcomes) == 3 * 3
    assert set(outcomes[0]) >= {"n", "seed", "question_id", "question", "sample", "y1", "y2", "r1", "r2"}
    assert set(pairs[0]) >= {"n", "question_id", "question", "i", "k", "y1", "y2", "r1", "r2", "kept", "dropped"}
    for entry in summary["iterations"]:
        of_n = [line for line in outcomes if line["n"] == entry["n"]]
        assert entry["test"]["corr_acc"] == pytest.approx(sum(line["r2"] for line in of_n) / 3)
        kept = [line for line in pairs if line["n"] == entry["n"] and line["kept"]]
        assert entry["n"] == 0 or entry["train"]["kept"] == len(kept)
    for pair in pairs:
        assert pair["kept"] == (pair["r2"] >= pair["r1"] and pair["r2"] == 1)
        assert pair["r1"] == even_first_byte(pair["y1"], ())
    assert not (folder / "models").exists()


def test_the_folder_holds_the_questions_that_pairs_and_outcomes_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_tiny(folder, "iterations=1", "filter=lenient")
    questions = lines(folder / "questions.jsonl")
    for split, file in (("train", "pairs.jsonl"), ("test", "outcomes.jsonl")):
        named = {line["question_id"] for line in lines(folder / file)}
        assert named == {line["id"] for line in questions if line["split"] == split}
    assert all(line["question"] and line["references"] for line in questions)


def test_the_journal_has_the_run_from_start_to_end(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path / "run", "iterations=1")
    events = list(read(tmp_path / "run" / "journal.jsonl"))
    told = [event for event in events if event["event"] != "stage"]
    assert [event["event"] for event in told] == [*("run_started", "iteration", "training", "iteration", "run_ended")]
    assert (events[0]["name"], events[0]["group"]) == ("EIE-modelconfig-seed0", "group")
    stages = [(event["kind"], event["n"]) for event in events if event["event"] == "stage"]
    assert stages[:4] == [("initial", 0), ("correction", 0), ("evaluation", 0), ("initial", 1)]
    assert events[0]["config"]["filter"]["margin"] == 0
    assert events[0]["versions"]["torch"]
    training, entry = told[2], summary["iterations"][1]
    assert {name: told[3][name] for name in entry} == entry
    assert training["n"] == 1 and sum(training["tokens"]) == entry["finetune"]["tokens"]
    assert [len(training[field.name]) for field in fields(OptimizerStep)] == [entry["finetune"]["steps"]] * 7
    assert training["epoch"][-1] == 1 and all(seconds > 0 for seconds in training["seconds"])
    assert events[-1]["status"] == "finished"


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again, other = (
        run_tiny(tmp_path / name, "iterations=2", f"seed={seed}") for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert without_times(first) == without_times(again)
    for name in ("outcomes.jsonl", "pairs.jsonl", "model/model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert (tmp_path / "a" / "pairs.jsonl").read_bytes() != (tmp_path / "c" / "pairs.jsonl").read_bytes()
    assert first["seed"] != other["seed"]


def test_variants_share_the_answers_of_m_0(tmp_path: Path) -> None:
    """The variant is in no noise key, so M_0's first answers are the same in all variants."""
    for name in ("strict", "maintaining"):
        run_tiny(tmp_path / name, "iterations=1", f"filter={name}")
    first, second = (lines(tmp_path / name / "pairs.jsonl") for name in ("strict", "maintaining"))
    assert [(line["y1"], line["y2"]) for line in first] == [(line["y1"], line["y2"]) for line in second]
    assert [line["kept"] for line in first] != [line["kept"] for line in second]


def test_fixed_initial_answers_are_reused_and_evolving_ones_are_not(tmp_path: Path) -> None:
    for init in ("fixed", "evolving"):
        run_tiny(tmp_path / init, "iterations=2", f"init={init}", "filter=lenient")
    for init, same in (("fixed", True), ("evolving", False)):
        pairs = lines(tmp_path / init / "pairs.jsonl")
        first, second = ([line["y1"] for line in pairs if line["n"] == n] for n in (1, 2))
        assert (first == second) is same


def test_crossed_pairing_pairs_every_correction_with_every_initial_answer(tmp_path: Path) -> None:
    summary = run_tiny(tmp_path / "run", "iterations=1", "pairing=crossed")
    assert summary["iterations"][1]["train"]["pairs"] == 3 * 2 * 2 * 2


@pytest.mark.parametrize("option", ["strict", "lenient"])
def test_nothing_kept_keeps_the_model_says_so_and_stops(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str
) -> None:
    (tmp_path / "run").mkdir()
    summary = run(experiment("iterations=3", f"filter={option}"), tmp_path / "run", "group", Console())
    assert summary["status"] == "stopped_empty"
    assert len(summary["iterations"]) == 2
    assert (
        f"iteration 1: filter={option} kept 0 of 12 pairs (mean r1 0.00, r2 0.00), nothing to train on; "
        "no answer earned a reward, so no filter helps: look at y1 and y2 in pairs.jsonl, then "
        "raise sampling.max_new_tokens (100% of the answers were cut off), "
        "raise dataset.n_train or sampling.n_init, take another reward=, or a stronger model="
    ) in [record.getMessage() for record in caplog.records]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_failed_run_says_so_in_its_folder(tmp_path: Path) -> None:
    pair = r"countries/\w+/\w+, answer [01], correction [01]"
    with pytest.raises(NonFiniteError, match=rf"at step \d+, on {pair}: lower finetune\.learning_rate"):
        run_tiny(tmp_path / "run", "finetune.learning_rate=1e30", "finetune.batch_size=1", "finetune.epochs=4")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed_nonfinite"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.split=validation dataset.n_validation=0", r"dataset\.n_validation"),
        ("finetune.warmup_ratio=0.1", r"finetune\.warmup_ratio=0\.1: .*constant_with_warmup"),
        ("sampling.top_p=1.5", r"sampling\.top_p=1\.5: expected 0 < top_p <= 1"),
        ("sampling.n_init=0", r"sampling\.n_init=0: expected at least 1"),
        ("sampling.n_init=two", r"sampling\.n_init: .*two"),
        ("seed=-1", r"seed=-1"),
        ("seed=one", r"^seed: .*one"),
        ("pairing=both", r"pairing=both: expected one of own, crossed"),
        ("reward_errors=skip", r"reward_errors=skip: expected fail or zero"),
        ("+filter.margni=0.1", r"filter\.margni: no such setting; there are margin"),
        ("filter.margin=high", r"filter\.margin: .*high"),
        ("finetune.optimizer=adam", r"finetune\.optimizer=adam: expected one of adamw_torch"),
        ("finetune.micro_batch_size=0", r"finetune\.micro_batch_size=0: expected null or at least 1"),
        ("model.dtype=int8", r"model\.dtype=int8: expected one of auto"),
        ("reward.scope=final", r"reward\.scope=final"),
        ("evaluation.split=train", r"evaluation\.split=train: expected test or validation"),
        ("evaluation.temperature=-1", r"evaluation\.temperature=-1"),
        ("tracking=wandb tracking.mode=maybe", r"tracking\.mode=maybe"),
        ("dataset.n_train=100000", r"dataset\.n_train"),
        ("engine.batch_size=0", r"engine\.batch_size=0"),
        (
            "reward._target_=stasc.tasks.rewards.Nothing",
            r"reward\._target_=stasc\.tasks\.rewards\.Nothing: .* has no .*Nothing",
        ),
        ("reward._target_=nonesuch.reward", r"reward\._target_=nonesuch\.reward: there is no module 'nonesuch'"),
        ("reward._target_=stasc", r"reward\._target_: <module 'stasc'.* is neither a function nor a class"),
        ("+samplng.n_corr=5", r"^samplng\.n_corr: no such setting; did you mean sampling\.n_corr\?"),
        ("+sampling.n_cor=5", r"^sampling\.n_cor: no such setting; .*did you mean sampling\.n_corr\?"),
        ("+learning_rate=1", r"^learning_rate: no such setting; did you mean finetune\.learning_rate\?"),
        ("+filtr=strict", r"^filtr: no such setting; did you mean filter\?"),
        ("+finetune.loss_per=example", r"^finetune\.loss_per: no such setting; .*did you mean loss\.per\?"),
        ("loss.per=batch", r"^loss\.per=batch: expected one of token, example"),
        ("+finetune.rank=8", r"^finetune\.rank: no such setting; (?!.*did you mean)"),
        ("+seeed=1", r"^seeed: no such setting; did you mean seed\?"),
        ("+sweep.nam=x", r"^sweep\.nam: no such setting; did you mean sweep\.name\?"),
        ("+xyzzy=1", r"^xyzzy: no such setting; --cfg job prints all there are"),
        ("~sampling", r"^sampling is missing from the settings"),
        ("model=custom", r"^model\.path is not set"),
        ("reward.marker=${nothing}", r"^reward\.marker: Interpolation key 'nothing' not found"),
    ],
)
def test_a_bad_setting_is_named_before_anything_is_loaded(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experiment(*override.split())


def of_an_answer(answer: str) -> float:
    """Lacks the references that a reward takes."""
    return 1.0


def with_defaults(answer: str = "", references: Sequence[str] = (), weight: float = 1.0) -> float:
    return weight


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("_target_: test_run.even_first_byte", r"even_first_byte\(answer.*_partial_: true .*\+reward\._partial_=true"),
        (
            "_target_: test_run.with_defaults",
            r"is 1\.0, expected a function of \(answer, references\).*_partial_: true",
        ),
        ("_target_: test_run.of_an_answer, _partial_: true", r"of_an_answer\(answer.*, expected a function of"),
        ("_target_: test_run.with_defaults, _partial_: true, wieght: 2", r"with_defaults\(.*keyword argument 'wieght'"),
    ],
)
def test_a_reward_that_cannot_be_called_is_refused_when_built(settings: str, message: str) -> None:
    for errors in ("fail", "zero"):
        with pytest.raises(ValueError, match=rf"^reward.*{message}") as raised:
            experiment("~reward", f"+reward={{{settings}}}", f"reward_errors={errors}")
        assert "reward_errors" not in str(raised.value)


def test_a_part_of_the_users_own_has_its_own_settings() -> None:
    built = experiment("~reward", "+reward={_target_: test_run.with_defaults, _partial_: true, weight: 0.5}")
    assert built.reward("an answer", ()) == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.device=cuda", r"model\.device=cuda: .*no CUDA device"),
        ("model.device=gpu", r"model\.device=gpu: expected auto, cpu, cuda or cuda:1"),
        ("model.device=cpu model.dtype=float16", r"model\.dtype=float16"),
        ("model.path=/no/such/folder", r"model\.path=/no/such/folder"),
        ("model.path=tiny:x", r"model\.path=tiny:x"),
        ("model.chat_template=/no/such/file", r"model\.chat_template=/no/such/file"),
    ],
)
def test_what_does_not_fit_the_machine_is_named_before_a_model_is_loaded(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        run(experiment(*override.split()), tmp_path, "group", Console())
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("choice", ["finetune=qlora", "finetune.optimizer=paged_adamw_8bit"])
def test_without_bitsandbytes_what_needs_it_is_refused(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest)
    )
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        run(experiment(choice), tmp_path, "group", Console())


@pytest.mark.slow
def test_help_and_the_composed_config_come_at_once(tmp_path: Path) -> None:
    """Takes under 1.5 s in the faster of two tries: neither torch nor transformers is imported."""
    for arguments in (["--help"], ["--cfg", "job"]):
        seconds = []
        for _ in range(2):
            began = time.perf_counter()
            answer = stasc(tmp_path, *arguments)
            seconds.append(time.perf_counter() - began)
            assert answer.returncode == 0, answer.stderr
        assert min(seconds) < 1.5
    script = "import sys, stasc.run; sys.exit(bool({'torch', 'transformers', 'wandb', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_all_settings_are_checked_before_torch_is_imported() -> None:
    """So a wrong setting costs a second, as `build_experiment` finds it."""
    script = """
import sys
from stasc.cli.build import build_experiment
from stasc.cli.compose import compose
for overrides in [], ["finetune=lora", "tracking=wandb"], ["finetune=qlora", "baseline=gold"]:
    build_experiment(compose(overrides))
sys.exit(bool({'torch', 'transformers', 'peft', 'wandb', 'datasets'} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_the_version_is_ours_and_then_hydras(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(tmp_path, "--version")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"stasc {stasc_version}\nHydra {hydra_version}\n"


@pytest.mark.slow
def test_a_run_from_the_command_line_ends_with_the_table(tmp_path: Path) -> None:
    answer = stasc(tmp_path, *TINY, "filter=strict", "init=evolving", "iterations=1")
    assert answer.returncode == 0, answer.stderr
    assert "EIE, seed 0, cpu" in answer.stdout
    assert "Correction accuracy" in answer.stdout
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert f"results: {folder.relative_to(tmp_path)}" in answer.stderr.splitlines()
    assert {path.name for path in folder.iterdir()} >= {
        *("journal.jsonl", "summary.json", "outcomes.jsonl", "pairs.jsonl", "model", "run.log", ".hydra"),
    }


@pytest.mark.slow
def test_help_marks_the_default_of_each_group(tmp_path: Path) -> None:
    shown = stasc(tmp_path, "--help").stdout
    groups = dict(re.findall(r"^(\w+): (\w.*\*.*)$", shown, re.M))
    marked = {group: re.findall(r"(\w+)\*", options) for group, options in groups.items()}
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]
    assert marked == {
        group: [option]
        for one in defaults
        if isinstance(one, dict)
        for group, option in one.items()
        if " " not in group and option is not None
    }
    groups["experiment"] = re.findall(r"^experiment: (.*)$", shown, re.M)[0]
    assert {(group, option.rstrip("*")) for group, options in groups.items() for option in options.split(", ")} == {
        *OPTIONS
    }


@pytest.mark.slow
def test_a_run_with_lora_warns_of_nothing_that_a_user_could_not_mend(command: Zygote, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def right(answer, references):\n    return 1.0\n")
    reward = ["~reward", "+reward={_target_: mine.right, _partial_: true}"]
    given = [*reward, "finetune=lora", "filter=lenient", "iterations=2", "start=evolving"]
    answer = command.run(tmp_path, *TINY, *given)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("fine-tuning") == 2, "else no adapter was made"
    assert "Warning" not in answer.stderr and "deprecated" not in answer.stderr


@pytest.mark.slow
def test_several_greedy_answers_are_warned_of_once_in_a_sweep(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(tmp_path, "--multirun", *TINY, "sampling.temperature=0", "seed=0,1", "iterations=0")
    assert answer.returncode == 0, answer.stderr
    assert (answer.stdout + answer.stderr).count("sampling.temperature=0 is greedy") == 1


@pytest.mark.slow
def test_a_sweep_runs_each_combination_in_a_folder_of_its_own(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(
        tmp_path, "--multirun", *TINY, "filter=strict,lenient", "init=fixed,evolving", "sweep.name=four", "iterations=1"
    )
    assert answer.returncode == 0, answer.stderr
    summaries = sorted((tmp_path / "multirun" / "four").glob("*/summary.json"))
    assert [json.loads(path.read_text())["variant"] for path in summaries] == ["EIE", "ENE", "FIE", "FNE"]


@pytest.mark.slow
def test_an_error_is_one_line_and_an_exit_status(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(tmp_path, *TINY, "sampling.temperature=-1")
    assert answer.returncode != 0
    assert answer.stderr.strip() == "error: sampling.temperature=-1.0: expected at least 0 (0: greedy)"
    (log,) = tmp_path.glob("outputs/*/*/run.log")
    assert "Traceback" in log.read_text()
    misspelt = command.run(tmp_path, *TINY, "samplng.n_corr=5")
    assert misspelt.stderr == "error: samplng.n_corr: no such setting; did you mean sampling.n_corr?\n"
    unknown = command.run(tmp_path, *TINY, "filter=stict")
    assert unknown.returncode != 0
    options = "all, lenient, maintaining, strict"
    assert unknown.stderr == f"error: filter=stict: no such option; there are {options}; did you mean filter=strict?\n"


def fragile(answer: str, references: Sequence[str]) -> float:
    """A reward that cannot take every answer."""
    return 1 / (even_first_byte(answer, references))


FRAGILE = ("~reward", "+reward={_target_: test_run.fragile, _partial_: true}")


def test_a_reward_that_raises_ends_the_run_with_the_name_of_the_answer(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"raised ZeroDivisionError for .*answer \d+ to countries/\w+/\w+ \('W.*'\): "
    ) as raised:
        run(experiment(*FRAGILE), tmp_path, "group", Console())
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_the_errors_of_a_reward_can_count_0(tmp_path: Path) -> None:
    built = experiment(*FRAGILE, "reward_errors=zero", "iterations=1")
    summary = run(built, tmp_path, "group", Console())
    assert summary["status"] == "finished"
    pairs = lines(tmp_path / "pairs.jsonl") + lines(tmp_path / "outcomes.jsonl")
    assert {pair["r2"] for pair in pairs} == {0, 1}
    for pair in pairs:
        assert pair["r1"] == even_first_byte(pair["y1"], ())


@pytest.mark.slow
def test_the_errors_of_a_reward_are_told_at_the_end_also_by_a_run_that_reuses_the_zeros(
    command: Zygote, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def reward(answer, references):\n    raise KeyError(answer)\n")
    settings = ["~reward", "+reward={_target_: mine.reward, _partial_: true}", "reward_errors=zero", "iterations=0"]
    for name in ("first", "second"):
        answer = command.run(tmp_path, *TINY, *settings, f"hydra.run.dir={name}")
        assert answer.returncode == 0, answer.stderr
        (told,) = [line for line in answer.stderr.splitlines() if "the reward raised an error" in line]
        assert "for 6 answers, first KeyError for '" in told  # an initial answer and a correction of 3 each
        assert answer.stderr.count(", which counts 0") == (name == "first")
        assert told in (tmp_path / name / "run.log").read_text()
        folders = [Path(folder) for folder in told.partition("to score them again, remove ")[2].split()]
        assert [folder.parent.name for folder in folders[1:]] == ["evaluation"]
        assert folders[0] == tmp_path / name
    for folder in folders:
        shutil.rmtree(folder)
    (tmp_path / "mine.py").write_text("def reward(answer, references):\n    return 1.0\n")
    answer = command.run(tmp_path, *TINY, *settings, "hydra.run.dir=second")
    assert answer.returncode == 0, answer.stderr
    assert "reward_errors=zero" not in answer.stderr


def test_an_interrupt_after_the_last_iteration_is_told_too_and_one_after_the_end_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for name, place, status in (("a", LiveModel.release, "interrupted"), ("b", RunFolder.end, "finished")):
        owner = LiveModel if name == "a" else RunFolder
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, place.__name__, lambda *given, place=place: (place(*given), interrupted()))
            run_tiny(tmp_path / name, "iterations=0")
        ended = [event["status"] for event in read(tmp_path / name / "journal.jsonl") if event["event"] == "run_ended"]
        assert ended == [status]


def interrupting(answer: str, references: Sequence[str]) -> float:
    """A reward at which somebody presses Ctrl-C."""
    raise KeyboardInterrupt


def test_an_interrupted_run_says_so_in_its_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(
            experiment("~reward", "+reward={_target_: test_run.interrupting, _partial_: true}"),
            tmp_path,
            "group",
            Console(),
        )
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("learning_rate", ["2e-5", "1e30"])
@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_a_run_frees_its_model_whether_it_ends_well_or_not(
    learning_rate: str, finetune: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep is many runs in one process, and Hydra keeps the exceptions of those that failed."""
    networks: list[weakref.ref[Any]] = []
    adopt = LiveModel.adopt
    monkeypatch.setattr(
        LiveModel,
        "adopt",
        lambda self, model, net, dtype: (networks.append(weakref.ref(net)), adopt(self, model, net, dtype)),
    )
    kept: list[BaseException] = []
    try:
        run_tiny(
            tmp_path / "run",
            f"finetune={finetune}",
            f"finetune.learning_rate={learning_rate}",
            "finetune.batch_size=1",
            "finetune.epochs=4",
            "iterations=1",
        )
    except FloatingPointError as error:
        kept.append(error)
    assert bool(kept) == (learning_rate == "1e30")
    gc.collect()
    assert networks
    assert [ref() for ref in networks] == [None] * len(networks)


def test_a_question_file_runs_and_its_validation_questions_can_be_evaluated_on(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"q": f"What is {i} + {i}?", "a": [str(2 * i)]}) + "\n" for i in range(30)))
    settings = ["dataset=jsonl", f"dataset.path={file}", "dataset.question=q", "dataset.answer=a"]
    summary = run_tiny(
        tmp_path / "run", *settings, "evaluation.split=validation", "dataset.n_validation=5", "iterations=1"
    )
    assert summary["iterations"][1]["test"]["questions"] == 5


def test_rows_left_out_are_told_once_and_change_the_digest_of_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "questions.jsonl"
    settings = ["dataset=jsonl", f"dataset.path={file}", "dataset.n_validation=0", "dataset.id=id"]
    rows = [json.dumps({"id": i, "question": f"What is {i} + {i}?", "answer": str(2 * i)}) for i in range(20)]
    digests = []
    for name, bad in (("whole", []), ("one", ["{}"]), ("two", ["{}", '{"id": 1}'])):
        file.write_text("\n".join([*rows, *bad]))
        caplog.clear()
        run_tiny(tmp_path / name, *settings, "dataset.on_bad_row=skip", "iterations=0")
        told = [record.message for record in caplog.records if "on_bad_row" in record.message]
        assert len(told) == bool(bad)
        if bad:
            assert f"left out {len(bad)} bad row{'s' * (len(bad) > 1)}: {file}:21: no column 'question'" in told[0]
        digests.append(lines(tmp_path / name / "journal.jsonl")[0]["data"])
    assert len({tuple(digest.values()) for digest in digests}) == 3
    with pytest.raises(ValueError, match=rf"{file}:21: no column 'question'"):
        experiment(*settings)


@pytest.mark.slow
def test_a_failed_job_of_a_sweep_does_not_stop_the_others(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(
        tmp_path, "--multirun", *TINY, "model.path=/no/such/model,tiny:0", "sweep.name=two", "iterations=0"
    )
    assert answer.returncode != 0
    assert " failed: model.path=/no/such/model" in answer.stderr
    assert "2 jobs, 1 failed" in answer.stdout
    failed, finished = sorted(
        (tmp_path / "multirun" / "two").glob("EIE*"), key=lambda job: (job / "summary.json").exists()
    )
    assert "Traceback" in (failed / "run.log").read_text()
    assert json.loads((finished / "summary.json").read_text())["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("sweep.name=../../escape", "sweep.name='../../escape'"),
        ("filter.letter=../../escape", "variant='E../../escapeE'"),
        ("finetune.suffix=/../../../escape", "variant='EIE/../../../escape'"),
        ("seed=../../../escape", "seed='../../../escape'"),
    ],
)
def test_no_name_leads_a_sweep_out_of_its_folder(override: str, setting: str, command: Zygote, tmp_path: Path) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    answer = command.run(here, "--multirun", *TINY, "sweep.name=inside", override)
    assert answer.returncode == 1
    said = [line for line in answer.stderr.splitlines() if line]
    assert said == [f"error: {setting}: {NAME}"]
    assert list(tmp_path.rglob("*escape*")) == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert {path.name for path in here.rglob("*")} <= {"multirun", "inside", "multirun.yaml"}


NAME = (
    "expected a name of at most 64 letters, digits, dots, hyphens and underscores, "
    "the first of which is a letter or a digit"
)


@pytest.mark.parametrize("override", ["sweep.name=a/b", "init.letter='.. '", "finetune.suffix='ß'"])
def test_a_bad_name_is_refused_where_it_is_in_no_path(override: str) -> None:
    with pytest.raises(ValueError, match=f"(sweep.name|variant)=.*: {NAME}"):
        experiment(override)


@pytest.mark.slow
def test_a_link_does_not_lead_a_job_out_of_multirun(command: Zygote, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "multirun").mkdir()
    (tmp_path / "multirun" / "link").symlink_to(tmp_path / "elsewhere")
    answer = command.run(tmp_path, "--multirun", *TINY, "sweep.name=link", "iterations=0")
    assert answer.returncode != 0
    assert f"leads to {tmp_path / 'elsewhere'}" in answer.stderr
    assert list((tmp_path / "elsewhere").rglob("journal.jsonl")) == []
    asked = command.run(tmp_path, "--multirun", *TINY, "hydra.sweep.dir=multirun/link", "iterations=0")
    assert asked.returncode == 0, asked.stderr
    assert len(list((tmp_path / "elsewhere").rglob("journal.jsonl"))) == 1


BAD_YAML = {
    "alias": ("letter: &x [*x]", "refers to itself by an alias, or is nested too deeply"),
    "depth": (f"letter: {'[' * 600}{']' * 600}", "refers to itself by an alias, or is nested too deeply"),
    "tag": ("letter: !!python/object/apply:os.mkdir [sprung]", "tag:yaml.org,2002:python/object/apply:os.mkdir"),
    "twice": ("letter: I\nletter: J", "found duplicate key letter"),
    "cut off": ("letter: [I", "while parsing a flow sequence"),
}


@pytest.mark.parametrize(("text", "message"), BAD_YAML.values(), ids=BAD_YAML)
def test_a_yaml_file_that_cannot_be_settings_is_one_line(
    text: str, message: str, command: Zygote, tmp_path: Path
) -> None:
    file = tmp_path / "conf" / "filter" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"_target_: stasc.choices.filter.Strict\nmargin: 0.0\n{text}\n")
    answer = command.run(tmp_path, "--config-dir", "conf", "filter=mine", "--cfg", "job")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error: ") and answer.stderr.count("\n") == 1
    assert message in answer.stderr and str(file) in answer.stderr
    assert not (tmp_path / "sprung").exists()


def test_an_error_of_composing_is_shown_in_full_if_asked_for(
    command: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    answer = command.run(tmp_path, "filter=stict", "--cfg", "job")
    assert answer.returncode != 0
    assert "Traceback" in answer.stderr


@pytest.mark.slow
def test_a_module_that_is_missing_is_named_once(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(tmp_path, *TINY, "~reward", "+reward={_target_: nonesuch.reward, _partial_: true}")
    assert answer.stderr == (
        "error: reward._target_=nonesuch.reward: there is no module 'nonesuch' in this folder, "
        "and none of that name is installed\n"
    )


@pytest.mark.slow
def test_a_deep_recursion_in_a_run_is_not_blamed_on_the_settings(command: Zygote, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def filter(letter):\n    return filter(letter)\n")
    settings = ["~filter", "+filter={_target_: mine.filter, letter: I}"]
    answer = command.run(tmp_path, *TINY, *settings)
    assert answer.returncode != 0
    assert "refers to itself" not in answer.stderr
    assert "mine.py" in answer.stderr


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("hydra.run.dir=file", "hydra.run.dir"),
        ("hydra.run.dir=file/in/it", "hydra.run.dir"),
        ("store.dir=file", "store.dir"),
        ("model.cache_dir=file", "model.cache_dir"),
        ("hydra.sweep.dir=file --multirun", "hydra.sweep.dir"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line_with_the_setting(
    setting: str, name: str, command: Zygote, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    answer = command.run(tmp_path, *TINY, *setting.split())
    assert answer.returncode == 1
    told = [line for line in (answer.stdout + answer.stderr).splitlines() if name in line]
    assert told and f"; set {name} " in told[-1] and "to a folder of yours" in told[-1], answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
def test_a_sweep_whose_jobs_leave_the_working_folder_finds_what_lies_in_it(command: Zygote, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def reward(answer, references):\n    return 1.0\n")
    rows = [{"question": f"{n} and {n}?", "answer": str(2 * n)} for n in range(9)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("dataset=jsonl", "dataset.path=sums.jsonl", "dataset.n_test=2", "dataset.n_validation=0")
    reward = ("~reward", "+reward={_target_: mine.reward, _partial_: true}")
    settings = (*data, "model=tiny", "tracking=off", "sampling.max_new_tokens=2", "iterations=0", *reward)
    sweep = ("--multirun", "hydra.job.chdir=true", "sweep.name=away", "seed=0,1", "store.dir=kept")
    answer = command.run(tmp_path, *settings, *sweep)
    assert answer.returncode == 0, answer.stderr
    jobs = sorted((tmp_path / "multirun" / "away").glob("E*"))
    assert len(jobs) == 2 and all((job / "summary.json").exists() for job in jobs)
    assert (tmp_path / "kept").is_dir() and not [*tmp_path.rglob("E*/kept")]
    assert answer.stdout.splitlines()[-1] == "results: multirun/away"


@pytest.mark.slow
def test_the_installed_package_brings_its_settings(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(CONF.parent)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    answer = subprocess.run(
        [sys.executable, "-m", "stasc.run", "--cfg", "job"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "_target_: stasc.choices.init.Evolving" in answer.stdout


# Secrets

PAID = """
def paid(answer, references, api_key="", url="", fail=False, **others):
    if fail:
        raise RuntimeError(f"refused: {api_key!r} at {url}")
    return float(len(answer) % 2)
"""


def found_in(folder: Path, *secrets: str) -> list[tuple[str, str]]:
    """Returns each secret with each file that contains it."""
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return [(secret, str(path)) for path, data in files.items() for secret in secrets if secret.encode() in data]


@pytest.mark.slow
@pytest.mark.parametrize("fail", [False, True])
def test_no_secret_is_left_in_a_runs_folder(
    fail: bool, command: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets of the environment, the settings and the command line, in a run that finishes and one that fails."""
    names = ("HF_TOKEN", "WANDB_API_KEY", "MY_SECRET_URL", "DB_PASSWORD")
    canaries = {name: f"canary-{name.lower()}-51c0ffee" for name in names}
    for name, canary in canaries.items():
        monkeypatch.setenv(name, canary)
    typed, short = "canary-typed-51c0ffee", "c4n4ry"
    (tmp_path / "paying.py").write_text(PAID)
    answer = command.run(
        tmp_path,
        *(setting for setting in TINY if not setting.startswith("tracking")),
        "tracking.mode=offline",
        "iterations=1",
        "filter=lenient",
        "~reward",
        "+reward={_target_: paying.paid, _partial_: true}",
        f"+reward.api_key={typed}",
        f"+reward.url='https://u:{canaries['DB_PASSWORD']}@host/'",
        f"+reward.fail={fail}",
        "+reward.note='see ${oc.env:MY_SECRET_URL}'",
        f"+reward.literal={canaries['HF_TOKEN']}",
        f"+reward.password={short}",
    )
    (folder,) = (tmp_path / "outputs").glob("*/*")
    assert found_in(folder, typed, short, *canaries.values()) == []
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())[-1] == "+reward.password=***"
    config = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert config["reward"]["note"] == "see ${oc.env:MY_SECRET_URL}"
    assert config["reward"]["url"] == "https://u:***@host/"
    (ended,) = (event for event in lines(folder / "journal.jsonl") if event["event"] == "run_ended")
    if fail:
        assert answer.returncode == 1
        assert "raised RuntimeError" in ended["error"]
        assert "refused: '***' at https://u:***@host/" in ended["error"]
        assert "refused: '***'" in (folder / "run.log").read_text()
    else:
        assert answer.returncode == 0, answer.stderr
        assert ended["status"] == "finished"


@pytest.mark.slow
def test_no_secret_is_left_in_a_sweeps_folder_or_in_an_error(
    command: Zygote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-token-51c0ffee")
    typed = ["canary-one-51c0ffee", "canary-two-51c0ffee"]
    (tmp_path / "paying.py").write_text(PAID)
    reward = ["~reward", "+reward={_target_: paying.paid, _partial_: true}", f"+reward.password={','.join(typed)}"]
    answer = command.run(tmp_path, "--multirun", *TINY, *reward, "model.path=canary-token-51c0ffee", "sweep.name=two")
    assert answer.returncode == 1
    assert re.search(r"EIE-seed0-\w+ failed: model\.path=\*\*\*: ", answer.stderr)
    told = [line for line in answer.stdout.splitlines() if "[HYDRA] \t#" not in line]  # Hydra repeats the overrides
    assert "canary" not in "\n".join(told) + answer.stderr
    assert (tmp_path / "multirun" / "two" / "multirun.yaml").exists()
    assert len(list((tmp_path / "multirun" / "two").glob("*/run.log"))) == 2
    assert found_in(tmp_path / "multirun", "canary-token-51c0ffee", *typed) == []
    answer = command.run(tmp_path, *TINY, "model.path=canary-token-51c0ffee")
    assert answer.stderr.startswith("error: model.path=***")


def test_files_without_a_secret_stay_as_hydra_wrote_them(command: Zygote, tmp_path: Path) -> None:
    answer = command.run(tmp_path, *TINY, "sampling.temperature=-1")
    assert "error:" in answer.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*/.hydra")
    assert "***" not in "".join(path.read_text() for path in folder.glob("*.yaml"))


# Signals


def stopped(command: Zygote, cwd: Path, number: signal.Signals, *arguments: str) -> tuple[int, str, Path]:
    """Returns status, standard error and folder of a long run that gets a signal after its first iteration."""
    (cwd / "paying.py").write_text(PAID)
    endless = ["+reward={_target_: paying.paid, _partial_: true}", "~reward", "filter=lenient", "iterations=300"]
    journal: list[Path] = []
    sent_s = 0.0

    def send(pid: int) -> None:
        nonlocal journal, sent_s
        deadline = time.monotonic() + 120
        while not any('"iteration", "n": 1,' in path.read_text() for path in journal):
            assert time.monotonic() < deadline
            time.sleep(0.05)
            journal = list(cwd.rglob("journal.jsonl"))
        sent_s = time.monotonic()
        os.kill(pid, number)

    ran = command.run(cwd, *arguments, *TINY, *endless, "patience=300", meanwhile=send)
    assert time.monotonic() - sent_s < 30
    return ran.returncode, ran.stderr, journal[0].parent


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_order(number: signal.Signals, status: int, command: Zygote, tmp_path: Path) -> None:
    code, told, folder = stopped(command, tmp_path, number)
    assert (
        code == status
        and told.splitlines()[-1] == f"stopped by {number.name}: the same command again reuses what is done"
    )
    *_, ended = read(folder / "journal.jsonl")
    assert (ended["event"], ended["status"], ended["error"]) == ("run_ended", "interrupted", number.name)
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_signal_ends_the_whole_sweep(command: Zygote, tmp_path: Path) -> None:
    code, _, folder = stopped(command, tmp_path, signal.SIGTERM, "--multirun", "seed=0,1")
    assert code == 143 and folder.name.startswith("ENE-seed0-")
    assert [path.name for path in folder.parent.glob("*-seed*")] == [folder.name]


STAYING = """
import pathlib, time

def stubborn(answer, references):
    try:
        pathlib.Path("asked").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        pathlib.Path("asked again").touch()
        time.sleep(60)

def mistaken(answer, references):
    try:
        pathlib.Path("asked").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        raise RuntimeError("something failed")
"""


def terminated(command: Zygote, cwd: Path, reward: str, *times: str) -> int:
    """Returns the status of a sweep that gets a signal as each of these files appears, while its reward runs."""
    (cwd / "staying.py").write_text(STAYING)
    settings = [*TINY, "~reward", f"+reward={{_target_: staying.{reward}, _partial_: true}}", "sweep.name=two"]
    sent_s = 0.0

    def send(pid: int) -> None:
        nonlocal sent_s
        deadline = time.monotonic() + 120
        for name in times:
            while not (cwd / name).exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            sent_s = time.monotonic()
            os.kill(pid, signal.SIGTERM)

    ran = command.run(cwd, "--multirun", *settings, "seed=0,1", meanwhile=send)
    assert time.monotonic() - sent_s < 10
    return ran.returncode


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_second_signal_ends_a_run_at_once(command: Zygote, tmp_path: Path) -> None:
    assert terminated(command, tmp_path, "stubborn", "asked", "asked again") == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_signal_that_a_job_took_for_an_error_of_its_own_ends_the_sweep_all_the_same(
    command: Zygote, tmp_path: Path
) -> None:
    assert terminated(command, tmp_path, "mistaken", "asked") == 143
    assert len(list((tmp_path / "multirun" / "two").glob("*-seed*"))) == 1
