"""One run: Algorithm 1 on a real model, and everything that was seen of it in the run's folder."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc import content, disk, fsx, keys, leases, provenance
from stasc.algorithm import Init, stasc
from stasc.console import Console
from stasc.engine.hf import HF
from stasc.explain import Watch
from stasc.finetune import Full, Lora, NonFiniteError
from stasc.folder import RunFolder, earlier
from stasc.leases import Lease
from stasc.model import M_0, LiveModel, Model, ModelConfig, load_chat, resolve_device, resolve_dtype
from stasc.pairing import Pairing, Reward
from stasc.prompt import Prompt
from stasc.records import Advance, Iteration, Split
from stasc.reward import ZeroOnError
from stasc.settings import Evaluation, Loop, Sampling, StoreConfig
from stasc.store import Store, digest
from stasc.tracking import Journal, Off, RunInfo, Wandb, redact, scrub

if TYPE_CHECKING:
    from stasc.chat import Chat
    from stasc.derivation import Derivation, Plan, Step
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
    store: StoreConfig
    train: Split
    test: Split
    variant: str
    settings: Mapping[str, Any]  # as composed, secrets included

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


def run(experiment: Experiment, path: Path, group: str, console: Console) -> dict[str, Any]:
    """Runs an experiment and returns its summary, as summary.json has it. All files go to the folder `path`.

    A run that was interrupted goes on from its stages in the store; one that is complete is left as it is.

    Raises: ValueError for a setting that does not fit the machine or the model, or a folder that holds another run.
    """
    prepared = prepare(experiment)
    store = open_store(prepared)
    with store.lock("run", digest(str(path.absolute()))):  # one process at a time writes into a folder
        summary = _resumed(prepared, path)
        if summary is None:
            disk.check(store.root, experiment.finetune, prepared.live, prepared.steps, experiment.store.keep_models)
            summary = _execute(prepared, store, path, group, console)
        else:
            log.info("this run is complete; nothing to do")
    console.final(summary)
    return summary


def prepare(experiment: Experiment) -> Prepared:
    """Everything short of loading weights. Raises: ValueError or OSError naming the setting that is wrong."""
    chat, live = _prepare(experiment)
    root = _root(experiment)
    with _naming_store(root):
        root.mkdir(parents=True, exist_ok=True)
    test, train = experiment.test.name, experiment.train.name
    recipes = keys.Recipes(
        settings=experiment.settings,
        base=content.folder_digest(Path(live.base), root / "digests.json"),
        four_bit=live.four_bit,
        numerics=keys.numerics(live.device.type, str(live.dtype)),
        template={
            "text": chat.tokenizer.chat_template,
            "args": chat.args,
            "stop_ids": sorted(chat.stop_ids),
            "prompt": digest(chat.prompt([{"role": "user", "content": "?"}])),  # a template may write the date
        },
        sampling={train: experiment.sampling, test: experiment.evaluation.sampling(experiment.sampling)},
        batch={
            train: experiment.engine.batch_size,
            test: experiment.evaluation.batch or experiment.engine.batch_size,
        },
        parts={
            "reward": experiment.reward.reward if isinstance(experiment.reward, ZeroOnError) else experiment.reward,
            "filter": experiment.keep,
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
    return Path(experiment.store.dir).expanduser().absolute()


@contextmanager
def _naming_store(root: Path) -> Iterator[None]:
    """An error in what is written there first names the setting."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"store.dir={root}: {error.strerror}; set store.dir to a folder of yours") from error


def expect(prepared: Prepared, path: Path) -> None:
    """Tells the store of a run that is yet to come, so that what it needs is not dropped before."""
    store, ours = open_store(prepared), prepared.lease(path, "expected")
    if not any((lease.folder, lease.key) == (ours.folder, ours.key) for lease in leases.every(store)):
        leases.write(store, ours)


def _resumed(prepared: Prepared, path: Path) -> dict[str, Any] | None:
    """The summary of the run in this folder if it is complete. Raises: ValueError if it is another run's folder."""
    experiment = prepared.experiment
    started, summary = earlier(path)
    if experiment.store.resume == "must" and started is None:
        raise ValueError(f"store.resume=must: {path} holds no run to go on with; set store.resume=auto to begin one")
    if started is None:
        return None
    if experiment.store.resume == "never":
        raise ValueError(f"store.resume=never: {path} holds a run already; choose another folder, or store.resume=auto")
    if started.get("key") != prepared.key:
        raise ValueError(
            f"{path} holds another run, which this one must not be mixed with "
            f"({'; '.join(_drift(started, experiment)) or 'of other data, model files or code'}): choose another "
            "sweep.name or hydra.run.dir, or remove the folder"
        )
    return summary


def _drift(started: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """What sets this run apart from the one that a folder's journal tells of."""
    there = {**keys.deciding(started["config"]), **keys.leaves({"versions": started["versions"]})}
    here = {**keys.deciding(experiment.config), **keys.leaves({"versions": provenance.versions()})}
    return keys.differences(here, [there]) or []


def _execute(prepared: Prepared, store: Store, path: Path, group: str, console: Console) -> dict[str, Any]:
    experiment, live = prepared.experiment, prepared.live
    loop = experiment.loop
    summary: dict[str, Any] = {
        "schema": 1,
        "key": prepared.key,
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
                    key=prepared.key,
                    config=experiment.config,
                    versions=provenance.versions(),
                    machine=provenance.machine(live.device),
                    commit=provenance.commit(),
                    data={
                        split.name: provenance.data_digest(split.questions, split.skipped)
                        for split in (experiment.train, experiment.test)
                    },
                )
                with _naming_store(store.root):
                    leases.write(store, prepared.lease(path, "running"))
                model, lease = _iterate(prepared, store, folder, console)
                _save_model(model, prepared, path / "model")
                leases.write(store, replace(lease, status="done"))
                leases.drop_unneeded(store, lease, ())
            finally:
                live.release()
            folder.end("finished" if len(summary["iterations"]) > loop.iterations else "stopped_empty")
        except KeyboardInterrupt as stop:
            if summary["status"] == "running":
                folder.end("interrupted", str(stop) or "KeyboardInterrupt")
            raise
        except BaseException as error:
            status = "failed_nonfinite" if isinstance(error, NonFiniteError) else "failed"
            with suppress(OSError):  # a full disk may be what it failed of
                folder.end(status, scrub(f"iteration {len(summary['iterations'])}: {type(error).__name__}: {error}"))
            traceback.clear_frames(error.__traceback__)  # a sweep keeps the exception, and with it what they hold
            raise
    return summary


def _prepare(experiment: Experiment) -> tuple[Chat, LiveModel]:
    """The tokenizer, and the model yet to be loaded, once device, dtype and chat template are known to be right."""
    from stasc.chat import read_template
    from stasc.context import check_context, context_limit

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
    chat = load_chat(experiment.model, base)
    check_context(
        context_limit(experiment.model, base),
        chat,
        experiment.prompt,
        experiment.train,
        experiment.test,
        experiment.sampling,
        experiment.evaluation,
    )
    return chat, live


def _stages(prepared: Prepared) -> Stages:
    from stasc.stages import Stages

    experiment, batch = prepared.experiment, prepared.recipes.batch
    return Stages(
        live=prepared.live,
        chat=prepared.chat,
        engines={split: replace(experiment.engine, batch_size=size) for split, size in batch.items()},
        prompt=experiment.prompt,
        reward=experiment.reward,
        pairing=experiment.pairing,
        tune=experiment.finetune,
        sampling=prepared.recipes.sampling,
        seed=experiment.loop.seed,
    )


def _loop(experiment: Experiment, m_0: Any, steps: Derivation | Plan) -> Iterator[Iteration[Any]]:
    """Algorithm 1 with the experiment's choices."""
    return stasc(
        m_0,
        experiment.train,
        experiment.test,
        init=experiment.init,
        sample=steps.sample,
        correct=steps.correct,
        score=steps.score,
        keep=experiment.keep,
        start=experiment.start,
        finetune=steps.finetune,
        iterations=experiment.loop.iterations,
        patience=experiment.loop.patience,
    )


def _plan(experiment: Experiment, recipes: keys.Recipes, m_0: Model, empty: Collection[int] = ()) -> tuple[Step, ...]:
    """The stages of a run, if all but the `empty` iterations keep something."""
    from stasc.derivation import Plan

    plan = Plan(recipes, empty)
    for _ in _loop(replace(experiment, keep=lambda r1, r2: True), m_0.key, plan):
        pass
    return tuple(plan.steps)


def _iterate(prepared: Prepared, store: Store, folder: RunFolder, console: Console) -> tuple[Model, Lease]:
    """Runs the loop. Returns: its last model, and what it came to need."""
    from stasc.derivation import Derivation

    experiment = prepared.experiment
    watch = Watch(store, folder, experiment.store.explain)

    def progress(label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return console.stage(f"n={len(folder.summary['iterations'])}  {label}", total, unit)

    steps = Derivation(_stages(prepared), replace(store, watch=watch), prepared.recipes, experiment.keep, progress)
    model, lease, empty = prepared.m_0, prepared.lease(folder.path, "running"), []
    for iteration in _loop(experiment, prepared.m_0, steps):
        model = iteration.model
        folder.iteration(iteration, steps.training.get(iteration.n), watch.pop_seconds())
        console.iteration(folder.summary["iterations"][-1])
        if iteration.n and not iteration.kept:
            log.warning(_nothing_kept(experiment, folder.summary["iterations"][-1]))
            empty.append(iteration.n)
            lease = prepared.lease(folder.path, "running", empty)
            leases.write(store, lease)
        leases.drop_unneeded(store, lease, [model.key])
    watch.report()
    return model, lease


def _nothing_kept(experiment: Experiment, entry: dict[str, Any]) -> str:
    train, option = entry["train"], type(experiment.keep).__name__.lower()
    return (
        f"iteration {entry['n']}: filter={option} kept 0 of {train['pairs']} pairs "
        f"(mean r1 {train['init_reward']:.2f}, r2 {train['corr_reward']:.2f}), nothing to train on; "
        "raise sampling.n_corr or dataset.n_train" + (", or try filter=lenient" if option == "strict" else "")
    )


def _save_model(model: Model, prepared: Prepared, path: Path) -> None:
    """Puts the final model where `from_pretrained` reads it, with its tokenizer and chat template."""
    scratch = path.with_name(f"{fsx.SCRATCH}{path.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    if model != M_0:
        prepared.live.before_read(model)
    source = model.adapter or model.weights or Path(prepared.live.base)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            _link(file.resolve(), scratch / file.name)
        elif file.suffix == ".json":
            shutil.copy(file, scratch)
    with fsx.naming(path):
        prepared.chat.tokenizer.save_pretrained(scratch)
    shutil.rmtree(path, ignore_errors=True)
    fsx.replace(scratch, path)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the two places do not share a disk."""
    try:
        target.hardlink_to(source)
    except OSError:
        with fsx.naming(target):
            shutil.copy(source, target)


def _quieten_libraries() -> None:
    """Progress bars of every weight that is loaded, and advice for other uses, are not for this run's user."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars  # type: ignore[attr-defined]
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # of downloads: those take minutes
