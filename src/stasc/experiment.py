"""One run: Algorithm 1 on a real model, and everything that was seen of it in the run's folder."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc import disk, keys, leases, provenance, publish
from stasc.console import Console
from stasc.explain import Watch
from stasc.finetune import NonFiniteError
from stasc.folder import SCHEMA, RunFolder, earlier
from stasc.leases import Lease
from stasc.model import Model
from stasc.preparation import Experiment, Prepared, loop, naming_store, open_store, prepare
from stasc.records import Advance
from stasc.store import Store, digest
from stasc.target import Correction
from stasc.tracking import Journal, RunInfo, scrub
from stasc.vote import words_of

if TYPE_CHECKING:
    from stasc.stages import Stages

log = logging.getLogger(__name__)


def run(experiment: Experiment, path: Path, group: str, console: Console) -> dict[str, Any]:
    """Runs an experiment and returns its summary, as summary.json has it. All files go to the folder `path`.

    A run that was interrupted goes on from its stages in the store; one that is complete is left as it is.

    Raises: ValueError for a setting that does not fit the machine or the model, or a folder that holds another run.
    """
    prepared = prepare(experiment)
    store = open_store(prepared)
    with store.lock("run", digest(str(path.absolute())), busy=f"writing into {path}"):
        summary = _resumed(prepared, path)
        if summary is None:
            disk.check(store.root, experiment.finetune, prepared.live, prepared.lease(path, "expected"))
            summary = _execute(prepared, store, path, group, console)
        else:
            log.info("this run is complete; nothing to do")
    console.final(summary)
    return summary


def _resumed(prepared: Prepared, path: Path) -> dict[str, Any] | None:
    """The summary of the run in this folder if it is complete. Raises: ValueError if it is another run's folder."""
    experiment = prepared.experiment
    there = earlier(path)
    if experiment.store.resume == "must" and there.key is None:
        raise ValueError(f"store.resume=must: {path} holds no run to go on with; set store.resume=auto to begin one")
    if there.key is None:
        return None
    if experiment.store.resume == "never":
        raise ValueError(f"store.resume=never: {path} holds a run already; choose another folder, or store.resume=auto")
    if there.key != prepared.key:
        raise ValueError(
            f"{path} holds another run, which this one must not be mixed with "
            f"({'; '.join(_drift(there.started, experiment)) or 'of other data, model files or code'}): choose another "
            "sweep.name or hydra.run.dir, or remove the folder"
        )
    return there.summary


def _drift(started: Mapping[str, Any] | None, experiment: Experiment) -> list[str]:
    """What sets this run apart from the one that a folder's journal tells of."""
    if started is None:
        return []
    there = {**keys.deciding(started["config"]), **keys.leaves({"versions": started["versions"]})}
    here = {**keys.deciding(experiment.config), **keys.leaves({"versions": provenance.versions()})}
    return keys.differences(here, [there]) or []


def _execute(prepared: Prepared, store: Store, path: Path, group: str, console: Console) -> dict[str, Any]:
    experiment, live = prepared.experiment, prepared.live
    settings = experiment.loop
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "key": prepared.key,
        "status": "running",
        "variant": experiment.variant,
        "seed": settings.seed,
        "device": str(live.device),
        "iterations": [],
    }
    name = f"{experiment.variant}-seed{settings.seed}"
    with Journal(path / "journal.jsonl") as journal:
        choices = dict(experiment.choices)
        tracker = experiment.tracking.start(
            RunInfo(name, group, experiment.variant, settings.seed, path, experiment.config, choices)
        )
        folder = RunFolder(path, summary, journal, tracker, settings.correct_at, words_of(experiment.reward))
        try:
            try:
                folder.begin(
                    (experiment.train, experiment.test),
                    name=name,
                    group=group,
                    key=prepared.key,
                    config=experiment.config,
                    choices=choices,
                    versions=provenance.versions(),
                    machine=provenance.machine(live.device),
                    commit=provenance.commit(),
                    data={
                        split.name: provenance.data_digest(split.questions, split.skipped)
                        for split in (experiment.train, experiment.test)
                    },
                )
                with naming_store(store.root):
                    leases.write(store, prepared.lease(path, "running"))
                model, lease = _iterate(prepared, store, folder, console)
                publish.save_model(model, live, prepared.chat, experiment.model, path / "model")
                leases.write(store, replace(lease, status="done"))
                leases.drop_unneeded(store, lease, ())
            finally:
                live.release()
            folder.end("finished" if len(summary["iterations"]) > settings.iterations else "stopped_empty")
        except KeyboardInterrupt as stop:
            if summary["status"] == "running":
                with suppress(OSError):
                    folder.end("interrupted", str(stop) or "KeyboardInterrupt")
            raise
        except BaseException as error:
            status = "failed_nonfinite" if isinstance(error, NonFiniteError) else "failed"
            with suppress(OSError):  # a full disk may be what it failed of
                folder.end(status, scrub(f"iteration {len(summary['iterations'])}: {type(error).__name__}: {error}"))
            traceback.clear_frames(error.__traceback__)  # a sweep keeps the exception, and with it what they hold
            raise
    return summary


def stages(prepared: Prepared) -> Stages:
    """What the run's stages compute."""
    from stasc.stages import Stages

    experiment, batch = prepared.experiment, prepared.recipes.batch
    return Stages(
        live=prepared.live,
        chat=prepared.chat,
        engines={split: replace(experiment.engine, batch_size=size) for split, size in batch.items()},
        prompt=experiment.prompt,
        reward=experiment.reward,
        pairing=experiment.pairing,
        target=experiment.target,
        tune=experiment.finetune,
        sampling=prepared.recipes.sampling,
        seed=experiment.loop.seed,
    )


def _iterate(prepared: Prepared, store: Store, folder: RunFolder, console: Console) -> tuple[Model, Lease]:
    """Runs the loop. Returns: its last model, and what it came to need."""
    from stasc.derivation import Derivation
    from stasc.engine.memory import Limit

    experiment = prepared.experiment
    watch = Watch(store, folder, experiment.store.explain)

    def progress(label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return console.stage(f"n={len(folder.summary['iterations'])}  {label}", total, unit)

    limit = Limit(told=folder.memory_short)
    steps = Derivation(
        replace(stages(prepared), limit=limit), replace(store, watch=watch), prepared.recipes, experiment.keep, progress
    )
    model, lease, empty = prepared.m_0, prepared.lease(folder.path, "running"), []
    for iteration in loop(experiment, prepared.m_0, steps):
        model = iteration.model
        folder.iteration(
            iteration,
            steps.training.get(iteration.n),
            {**watch.pop_seconds(), "loading": prepared.live.pop_loading()},
        )
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
    samples = "n_corr" if isinstance(experiment.target, Correction) else "n_init"
    return (
        f"iteration {entry['n']}: filter={option} kept 0 of {train['pairs']} pairs "
        f"(mean r1 {train['init_reward']:.2f}, r2 {train['corr_reward']:.2f}), nothing to train on; "
        f"raise sampling.{samples} or dataset.n_train" + (", or try filter=lenient" if option == "strict" else "")
    )
