"""Prepares a run: opens its model without loading weights, checks that all fits, and plans the run's stages."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stasc.algorithm import stasc
from stasc.machine import provenance
from stasc.machine.paths import naming_setting, path_of
from stasc.machine.sealed import digest
from stasc.models.chat import Chat, read_template
from stasc.models.checkpoint import check, check_context, context_limit
from stasc.models.config import load_chat, reading, resolve_device, resolve_dtype
from stasc.models.live import LiveModel
from stasc.models.model import M_0, Model
from stasc.records import Iteration
from stasc.runs.experiment import Experiment
from stasc.store import keys
from stasc.store.artifacts import Store
from stasc.store.cached import CachedStages
from stasc.store.leases import Lease
from stasc.store.plan import Plan, Step
from stasc.tasks.rewards.interface import inner


@dataclass(frozen=True)
class Prepared:
    """A checked run: its model, whose weights are not loaded, and its stages if every iteration keeps something."""

    experiment: Experiment
    chat: Chat
    live: LiveModel
    m_0: Model
    descriptions: keys.StageDescriptions
    steps: tuple[Step, ...]

    @property
    def key(self) -> str:
        """The digest of everything that decides the run's results."""
        loop = self.experiment.loop
        return digest([[step.key for step in self.steps], loop.iterations, loop.patience])

    def lease(self, path: Path, status: str, empty: Collection[int] = ()) -> Lease:
        """Returns the lease of the run in folder `path`, if all iterations but the `empty` keep something."""
        steps = _plan(self.experiment, self.descriptions, self.m_0, empty) if empty else self.steps
        final = [self.m_0.key, *(step.key for step in steps if step.kind == "finetune")][-1]
        return Lease(str(path.absolute()), self.key, status, self.experiment.store.keep_models, steps, final)


def prepare(experiment: Experiment) -> Prepared:
    """Prepares a run without loading weights. Raises: ValueError or OSError naming the setting that is wrong."""
    chat, live = _open_model(experiment)
    root = _root(experiment)
    with naming_setting("store.dir", root):
        root.mkdir(parents=True, exist_ok=True)
    descriptions = _descriptions(experiment, chat, live, keys.folder_digest(Path(live.base), root / "digests.json"))
    m_0 = replace(M_0, key=digest(descriptions.m_0()))
    return Prepared(experiment, chat, live, m_0, descriptions, _plan(experiment, descriptions, m_0))


def open_store(prepared: Prepared) -> Store:
    """Returns the store of a run."""
    return Store(_root(prepared.experiment), provenance.machine(prepared.live.device))


def _root(experiment: Experiment) -> Path:
    return path_of("store.dir", experiment.store.dir).absolute()


def _descriptions(experiment: Experiment, chat: Chat, live: LiveModel, base: str) -> keys.StageDescriptions:
    """Returns what describes the run's stages; `base` is the digest of M_0's files."""
    test, train = experiment.test.name, experiment.train.name
    sampling = experiment.sampling
    if sampling.stop is None:
        sampling = replace(sampling, stop=list(chat.stop_strings))
    return keys.StageDescriptions(
        settings=experiment.settings,
        base=base,
        four_bit=live.four_bit,
        numerics=keys.numerics(live.device.type, str(live.dtype), live.attention),
        template={
            "text": chat.tokenizer.chat_template,
            "args": chat.args,
            "stop_ids": sorted(chat.stop_ids),
            **({"date": experiment.model.date} if "strftime_now" in chat.tokenizer.chat_template else {}),
        },
        rendered={
            "initial": digest(chat.prompt(experiment.prompt.ask("?"))),
            "correction": digest(chat.prompt(experiment.prompt.ask_to_correct("?", "?"))),
        },
        sampling={train: sampling, test: experiment.evaluation.sampling(sampling)},
        batch={train: None, test: experiment.evaluation.batch},
        parts={
            "reward": inner(experiment.reward),
            **{
                name: getattr(experiment, name) for name in ("filter", "target", "finetune", "loss", "engine", "prompt")
            },
        },
    )


def _open_model(experiment: Experiment) -> tuple[Chat, LiveModel]:
    """Returns the tokenizer and the model, its weights not loaded. Checks device, dtype, chat template and context."""
    _check_single_process()
    device = resolve_device(experiment.model.device)
    dtype = resolve_dtype(experiment.model.dtype, device)
    tune = experiment.finetune
    if tune.needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"finetune with 4-bit weights or finetune.optimizer={tune.optimizer} needs bitsandbytes, which is not "
            "installed: pip install bitsandbytes, or take finetune=lora or full and finetune.optimizer=adamw_torch"
        )
    quieten_libraries()
    if experiment.model.chat_template not in (None, "plain"):
        read_template(experiment.model.chat_template)
    # Pickled weights are refused. Without this, transformers would ask a service to convert them.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    base = experiment.model.fetch()
    config = check(experiment.model, base, full=not tune.adapter, four_bit=tune.four_bit)
    limit, settings = context_limit(config), experiment.model
    live = LiveModel(
        base, settings.revision, device, dtype, four_bit=tune.four_bit, attention=settings.attention, context=limit
    )
    chat = load_chat(experiment.model, base)
    with reading(experiment.model):
        chat.restrict(config.get_text_config().vocab_size)
    splits, sampling = (experiment.train, experiment.test), (experiment.sampling, experiment.evaluation)
    check_context(limit, chat, experiment.prompt, *splits, *sampling)
    return chat, live


def _check_single_process() -> None:
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if (processes := os.environ.get(name)) and processes != "1":
            advice = "start it without torchrun, accelerate launch or mpirun"
            raise ValueError(f"{name}={processes}: a run is one process on one device; {advice}")


def loop(experiment: Experiment, m_0: Any, steps: CachedStages | Plan) -> Iterator[Iteration[Any]]:
    """Yields the iterations of Algorithm 1 with the experiment's choices.

    `steps` computes the stages, or a `Plan` records their keys only.
    """
    sample, correct = experiment.target.stages(steps.sample, steps.correct)
    return stasc(
        m_0,
        experiment.train,
        experiment.test,
        init=experiment.init,
        sample=sample,
        correct=correct,
        score=steps.score,
        keep=experiment.keep,
        unusable=steps.unusable,
        start=experiment.start,
        finetune=steps.finetune,
        iterations=experiment.loop.iterations,
        patience=experiment.loop.patience,
    )


def _plan(
    experiment: Experiment, descriptions: keys.StageDescriptions, m_0: Model, empty: Collection[int] = ()
) -> tuple[Step, ...]:
    """Returns the stages of a run in order, if all iterations but the `empty` keep something."""
    plan = Plan(descriptions, empty)
    for _ in loop(replace(experiment, keep=lambda pair: True), m_0.key, plan):
        pass
    return tuple(plan.steps)


def quieten_libraries() -> None:
    """Turns off the libraries' progress bars for loaded weights, and their advice for other uses."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # keeps the bars of downloads, which take minutes
