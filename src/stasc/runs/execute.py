"""One run: Algorithm 1 on a real model, and everything that was seen of it in the run's folder."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stasc.errors import NonFiniteError
from stasc.machine import provenance
from stasc.machine.paths import naming
from stasc.machine.sealed import digest
from stasc.models.model import Model
from stasc.records import REASONS, Advance, Split
from stasc.runs import advice, disk, publish
from stasc.runs.experiment import Experiment
from stasc.runs.folder import SCHEMA, RunFolder, earlier
from stasc.runs.prepare import Prepared, loop, open_store, prepare
from stasc.runs.vote import NO_KEY, key_of
from stasc.runs.watch import Watch
from stasc.settings import table
from stasc.store import keys, leases
from stasc.store.artifacts import Store
from stasc.store.leases import Lease
from stasc.tasks.rewards import attribute, inner
from stasc.tracking import Journal, RunInfo, Wandb, fallback, scrub
from stasc.tracking.console import Console
from stasc.units import counted

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
    with ExitStack() as held:
        with naming("store.dir", store.root):
            held.enter_context(store.lock("run", digest(str(path.absolute())), busy=f"writing into {path}"))
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
    there = {**table.deciding(started["config"]), **table.leaves({"versions": started["versions"]})}
    here = {**table.deciding(experiment.config), **table.leaves({"versions": provenance.versions()})}
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
        if isinstance(experiment.tracking, Wandb):
            name, group = experiment.tracking.name or name, experiment.tracking.group or group
        tracker = experiment.tracking.start(
            RunInfo(name, group, experiment.variant, settings.seed, path, experiment.config, choices)
        )
        folder = RunFolder(path, summary, journal, tracker, settings.correct_at, experiment.reward, experiment.filter)
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
                    rows={split.name: _rows(split) for split in (experiment.train, experiment.test)},
                )
                with naming("store.dir", store.root):
                    leases.write(store, prepared.lease(path, "running"))
                with fallback.recording(folder.fallback):
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


def _rows(split: Split) -> dict[str, int]:
    """How many rows of the data a split has, and how many are left out as bad or have another row's question."""
    return {"questions": len(split.questions), "skipped": len(split.skipped), "repeated": len(split.repeated)}


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
    from stasc.engines.hf.memory import Limit
    from stasc.store.cached import Derivation

    experiment = prepared.experiment
    if experiment.evaluation.n_init > 1 and key_of(experiment.reward) is None:
        log.warning("evaluation.n_init=%d: %s", experiment.evaluation.n_init, NO_KEY)
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
        if odd := [(pair, reason) for pair, reason in iteration.left_out if reason != "truncated"]:
            pair, reason = odd[0]
            log.warning(
                "iteration %d: %s left out, first %s: %s",
                iteration.n,
                counted(len(odd), "pair"),
                pair.id,
                REASONS[reason],
            )
        if iteration.n and not iteration.kept:
            samples = "sampling.n_corr" if experiment.target.corrects else "sampling.n_init"
            if iteration.left_out:
                why = advice.nothing_usable(iteration.pairs, iteration.left_out)
            else:
                unmarked = attribute(inner(experiment.reward), "unmarked")
                why = advice.nothing_kept(
                    iteration.pairs, experiment.filter, experiment.loop.correct_at, samples, unmarked
                )
            log.warning("iteration %d: %s", iteration.n, why)
            empty.append(iteration.n)
            lease = prepared.lease(folder.path, "running", empty)
            leases.write(store, lease)
        leases.drop_unneeded(store, lease, [model.key])
    watch.report()
    return model, lease
