"""One run: Algorithm 1 on a real model, and everything that was seen of it in the run's folder."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc import provenance
from stasc.algorithm import Init, stasc
from stasc.console import Console
from stasc.engine.hf import HF
from stasc.finetune import Full, Lora
from stasc.folder import RunFolder
from stasc.model import M_0, LiveModel, Model, ModelConfig, load_chat, resolve_device, resolve_dtype
from stasc.pairing import Pairing, Reward
from stasc.prompt import Prompt
from stasc.records import Split
from stasc.settings import Evaluation, Loop, Sampling
from stasc.tracking import Journal, Off, RunInfo, Wandb, scrub

if TYPE_CHECKING:
    from stasc.chat import Chat
    from stasc.stages import Stages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """The checked parts of a run: one option per design choice, and the questions."""

    loop: Loop
    sampling: Sampling
    evaluation: Evaluation
    init: Init
    keep: Callable[[float, float], bool]
    start: Callable[[Model, Model], Model]
    finetune: Full | Lora
    pairing: Pairing
    reward: Reward
    prompt: Prompt
    model: ModelConfig
    engine: HF
    tracking: Wandb | Off
    train: Split
    test: Split
    variant: str
    config: dict[str, Any]  # as composed, without secrets


def run(experiment: Experiment, path: Path, group: str, console: Console) -> dict[str, Any]:
    """Runs an experiment and returns its summary, as summary.json has it. All files go to the folder `path`.

    Raises: ValueError for a setting that does not fit the machine or the model.
    """
    loop = experiment.loop
    chat, live = _prepare(experiment)
    summary: dict[str, Any] = {
        "status": "running",
        "variant": experiment.variant,
        "seed": loop.seed,
        "device": str(live.device),
        "iterations": [],
    }
    name = f"{experiment.variant}-seed{loop.seed}"
    with Journal(path / "journal.jsonl") as journal:
        tracker = experiment.tracking.start(
            RunInfo(name, group, experiment.variant, loop.seed, path, experiment.config)
        )
        folder = RunFolder(path, summary, journal, tracker, loop.correct_at)
        try:
            try:
                folder.begin(
                    name=name,
                    group=group,
                    config=experiment.config,
                    versions=provenance.versions(),
                    machine=provenance.machine(live.device),
                    commit=provenance.commit(),
                    data={
                        split.name: provenance.data_digest(split.questions)
                        for split in (experiment.train, experiment.test)
                    },
                )
                model = _iterate(experiment, _stages(experiment, chat, live, folder, console), folder, console)
                _save_model(model, live, chat, path / "model")
                shutil.rmtree(_models(path), ignore_errors=True)
            finally:
                live.release()
            folder.end("finished" if len(summary["iterations"]) > loop.iterations else "stopped_empty")
        except KeyboardInterrupt as stop:
            if summary["status"] == "running":
                folder.end("interrupted", str(stop) or "KeyboardInterrupt")
            raise
        except BaseException as error:
            folder.end("failed", scrub(f"{type(error).__name__}: {error}"))
            traceback.clear_frames(error.__traceback__)  # a sweep keeps the exception, and with it what they hold
            raise
    console.final(summary)
    return summary


def _prepare(experiment: Experiment) -> tuple[Chat, LiveModel]:
    """The tokenizer, and the model yet to be loaded, once device, dtype and chat template are known to be right."""
    from stasc.chat import read_template

    device = resolve_device(experiment.model.device)
    dtype = resolve_dtype(experiment.model.dtype, device)
    tune = experiment.finetune
    if tune.needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"finetune with 4-bit weights or finetune.optimizer={tune.optimizer} needs bitsandbytes, which is not "
            "installed: pip install bitsandbytes, or take finetune=lora or full and finetune.optimizer=adamw_torch"
        )
    _quieten_libraries()
    if experiment.model.chat_template not in (None, "plain"):
        read_template(experiment.model.chat_template)
    # Weights that are pickled are refused; without this, transformers would ask a service to convert them.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    base = experiment.model.fetch()
    live = LiveModel(base, experiment.model.revision, device, dtype, four_bit=tune.four_bit)
    try:
        return load_chat(experiment.model, base), live
    except OSError as error:
        raise OSError(f"model.path={experiment.model.path}: {error}") from error


def _stages(experiment: Experiment, chat: Chat, live: LiveModel, folder: RunFolder, console: Console) -> Stages:
    from stasc.stages import Stages

    def progress(label: str, total: int, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        return console.stage(f"n={len(folder.summary['iterations'])}  {label}", total, unit)

    test, train = experiment.test.name, experiment.train.name
    batch = experiment.evaluation.batch or experiment.engine.batch_size
    return Stages(
        live=live,
        chat=chat,
        engines={train: experiment.engine, test: replace(experiment.engine, batch_size=batch)},
        prompt=experiment.prompt,
        reward=experiment.reward,
        pairing=experiment.pairing,
        tune=experiment.finetune,
        sampling={train: experiment.sampling, test: experiment.evaluation.sampling(experiment.sampling)},
        seed=experiment.loop.seed,
        models=_models(folder.path),
        progress=progress,
    )


def _iterate(experiment: Experiment, stages: Stages, folder: RunFolder, console: Console) -> Model:
    """Runs the loop and returns its last model."""
    model = M_0
    for iteration in stasc(
        M_0,
        experiment.train,
        experiment.test,
        init=experiment.init,
        sample=stages.sample,
        correct=stages.correct,
        score=stages.score,
        keep=experiment.keep,
        start=experiment.start,
        finetune=stages.finetune,
        iterations=experiment.loop.iterations,
        patience=experiment.loop.patience,
    ):
        model = iteration.model
        folder.iteration(iteration, stages.training.get(iteration.n), stages.pop_seconds())
        _drop_models(stages.models, model)
        console.iteration(folder.summary["iterations"][-1])
        if iteration.n and not iteration.kept:
            log.warning(_nothing_kept(experiment, folder.summary["iterations"][-1]))
    return model


def _nothing_kept(experiment: Experiment, entry: dict[str, Any]) -> str:
    train = entry["train"]
    return (
        f"iteration {entry['n']}: filter {type(experiment.keep).__name__.lower()} kept 0 of {train['pairs']} pairs "
        f"(mean r1 {train['init_reward']:.2f}, r2 {train['corr_reward']:.2f}), nothing to train on; "
        "raise sampling.n_corr or dataset.n_train, or try filter=lenient"
    )


def _models(path: Path) -> Path:
    return path / "models"


def _drop_models(models: Path, in_use: Model) -> None:
    """Removes the models of earlier iterations: the next one needs M_0 and the last."""
    for folder in models.glob("*"):
        if folder not in (in_use.weights, in_use.adapter):
            shutil.rmtree(folder)


def _save_model(model: Model, live: LiveModel, chat: Chat, path: Path) -> None:
    """Writes the final model as `from_pretrained` reads it, with its tokenizer and chat template."""
    trained = model.adapter or model.weights
    if trained is None:
        live.load(model).save_pretrained(str(path))
    else:
        trained.rename(path)
    chat.tokenizer.save_pretrained(path)


def _quieten_libraries() -> None:
    """Progress bars of every weight that is loaded, and advice for other uses, are not for this run's user."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # of downloads: those take minutes
