"""What a run is made of, checked before any weights are loaded, and what it will derive."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc import checkpoint, content, keys, leases, provenance
from stasc.algorithm import Init, stasc
from stasc.engine.hf import HF
from stasc.finetune import Full, Lora
from stasc.leases import Lease
from stasc.model import M_0, LiveModel, Model, ModelConfig, load_chat, reading, resolve_device, resolve_dtype
from stasc.pairing import Pairing, Reward
from stasc.paths import naming, path_of
from stasc.prompt import Prompt
from stasc.records import Iteration, Split
from stasc.reward import ZeroOnError
from stasc.settings import Evaluation, Loop, Sampling, StoreConfig
from stasc.store import Store, digest
from stasc.target import Correction, Gold, Initial
from stasc.tracking import Off, Wandb, redact

if TYPE_CHECKING:
    from stasc.chat import Chat
    from stasc.derivation import Derivation, Plan, Step


@dataclass(frozen=True)
class Experiment:
    """The checked parts of a run: one option per design choice, and the questions."""

    loop: Loop
    sampling: Sampling
    evaluation: Evaluation
    init: Init
    keep: Callable[[float, float], bool]
    start: Callable[[Model, Model], Model]
    target: Correction | Initial | Gold
    finetune: Full | Lora
    pairing: Pairing
    reward: Reward
    prompt: Prompt
    model: ModelConfig
    engine: HF
    tracking: Wandb | Off
    store: StoreConfig
    train: Split
    test: Split
    variant: str
    settings: Mapping[str, Any]  # as composed, secrets included
    choices: Mapping[str, str]  # the option of each config group, by name

    @property
    def config(self) -> dict[str, object]:
        """The settings without secrets."""
        return redact(self.settings)


@dataclass(frozen=True)
class Prepared:
    """A run that can begin: its model yet to be loaded, and what it will derive if every iteration keeps something."""

    experiment: Experiment
    chat: Chat
    live: LiveModel
    m_0: Model
    recipes: keys.Recipes
    steps: tuple[Step, ...]

    @property
    def key(self) -> str:
        """Of all that decides the run's results."""
        loop = self.experiment.loop
        return digest([[step.key for step in self.steps], loop.iterations, loop.patience])

    def lease(self, path: Path, status: str, empty: Collection[int] = ()) -> Lease:
        """What the run in folder `path` needs of the store, if all but the `empty` iterations keep something."""
        steps = _plan(self.experiment, self.recipes, self.m_0, empty) if empty else self.steps
        final = [self.m_0.key, *(step.key for step in steps if step.kind == "finetune")][-1]
        return Lease(str(path.absolute()), self.key, status, self.experiment.store.keep_models, steps, final)


def prepare(experiment: Experiment) -> Prepared:
    """Everything short of loading weights. Raises: ValueError or OSError naming the setting that is wrong."""
    chat, live = _prepare(experiment)
    root = _root(experiment)
    with naming("store.dir", root):
        root.mkdir(parents=True, exist_ok=True)
    test, train = experiment.test.name, experiment.train.name
    sampling = experiment.sampling
    if sampling.stop is None:
        sampling = replace(sampling, stop=list(chat.stop_strings))
    recipes = keys.Recipes(
        settings=experiment.settings,
        base=content.folder_digest(Path(live.base), root / "digests.json"),
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
        batch={
            train: experiment.engine.batch_size,
            test: experiment.evaluation.batch or experiment.engine.batch_size,
        },
        parts={
            "reward": experiment.reward.reward if isinstance(experiment.reward, ZeroOnError) else experiment.reward,
            "filter": experiment.keep,
            "target": experiment.target,
            "finetune": experiment.finetune,
            "engine": experiment.engine,
            "prompt": experiment.prompt,
        },
    )
    m_0 = replace(M_0, key=digest(recipes.m_0()))
    return Prepared(experiment, chat, live, m_0, recipes, _plan(experiment, recipes, m_0))


def open_store(prepared: Prepared) -> Store:
    """The store of a run."""
    return Store(_root(prepared.experiment), provenance.machine(prepared.live.device))


def _root(experiment: Experiment) -> Path:
    return path_of("store.dir", experiment.store.dir).absolute()


def expect(prepared: Prepared, path: Path) -> None:
    """Tells the store of a run that is yet to come, so that what it needs is not dropped before."""
    store, ours = open_store(prepared), prepared.lease(path, "expected")
    if not any((lease.folder, lease.key) == (ours.folder, ours.key) for lease in leases.every(store)):
        leases.write(store, ours)


def _prepare(experiment: Experiment) -> tuple[Chat, LiveModel]:
    """The tokenizer, and the model yet to be loaded, once device, dtype and chat template are known to be right."""
    from stasc.chat import read_template
    from stasc.context import check_context, context_limit

    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"):
        if (processes := os.environ.get(name)) and processes != "1":
            raise ValueError(
                f"{name}={processes}: a run is one process on one device; "
                "start it without torchrun, accelerate launch or mpirun"
            )
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
    config = checkpoint.check(experiment.model, base, tune)
    attention = experiment.model.attention
    limit = context_limit(experiment.model, base)
    live = LiveModel(
        base,
        experiment.model.revision,
        device,
        dtype,
        four_bit=tune.four_bit,
        attention=attention,
        context=limit,
    )
    chat = load_chat(experiment.model, base)
    with reading(experiment.model):
        chat.restrict(config.get_text_config().vocab_size)
    check_context(
        limit,
        chat,
        experiment.prompt,
        experiment.train,
        experiment.test,
        experiment.sampling,
        experiment.evaluation,
    )
    return chat, live


def loop(experiment: Experiment, m_0: Any, steps: Derivation | Plan) -> Iterator[Iteration[Any]]:
    """Algorithm 1 with the experiment's choices."""
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


def _plan(experiment: Experiment, recipes: keys.Recipes, m_0: Model, empty: Collection[int] = ()) -> tuple[Step, ...]:
    """The stages of a run, if all but the `empty` iterations keep something."""
    from stasc.derivation import Plan

    plan = Plan(recipes, empty)
    for _ in loop(replace(experiment, keep=lambda r1, r2: True), m_0.key, plan):
        pass
    return tuple(plan.steps)


def _quieten_libraries() -> None:
    """Progress bars of every weight that is loaded, and advice for other uses, are not for this run's user."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # of downloads: those take minutes
