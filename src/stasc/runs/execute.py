"""One run: builds on `prepare`, runs Algorithm 1 with a real model, and records everything in the run's folder."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stasc.errors import NonFiniteError
from stasc.machine import provenance
from stasc.machine.paths import naming_setting
from stasc.machine.sealed import digest
from stasc.models.model import Model
from stasc.records import REASONS, Advance, Iteration
from stasc.runs import advice, disk, publish
from stasc.runs.experiment import Experiment
from stasc.runs.folder import SCHEMA, RunFolder, earlier
from stasc.runs.prepare import Prepared, loop, open_store, prepare
from stasc.runs.vote import NO_KEY, key_of
from stasc.runs.watch import Watch
from stasc.settings.deciding import deciding
from stasc.settings.names import leaves, model_name
from stasc.stages import Stages
from stasc.store import keys, leases
from stasc.store.artifacts import Store
from stasc.store.cached import CachedStages
from stasc.store.leases import Lease
from stasc.tasks.rewards import attribute
from stasc.tracking import Journal, RunInfo, Wandb, fallback, scrub
from stasc.tracking.console import Console
from stasc.units import counted

log = logging.getLogger(__name__)


def run(experiment: Experiment, path: Path, sweep: str | None, console: Console) -> dict[str, Any]:
    """Runs an experiment in the folder `path`, and returns its summary, as in summary.json.

    An interrupted run resumes from its stages in the store; a complete one is left as it is. `sweep` is the name of the
    sweep that the run is a job of.

    Raises: ValueError for a setting that does not fit the machine or the model, or a folder that holds another run.
    """
    prepared = prepare(experiment)
    store = open_store(prepared)
    with ExitStack() as held:
        with naming_setting("store.dir", store.root):
            held.enter_context(store.lock("run", digest(str(path.absolute())), busy=f"writing into {path}"))
        summary = _complete(prepared, path)
        if summary is None:
            disk.check(store.root, experiment.finetune, prepared.live, prepared.lease(path, "expected"))
            summary = _execute(prepared, store, path, sweep, console)
        else:
            log.info("this run is complete; nothing to do")
    console.final(summary)
    return summary


def _complete(prepared: Prepared, path: Path) -> dict[str, Any] | None:
    """Returns the summary of the run in a folder if it is complete. Raises: ValueError if it is another run's."""
    experiment = prepared.experiment
    there = earlier(path)
    if experiment.store.resume == "must" and there.key is None:
        raise ValueError(f"store.resume=must: {path} holds no run to resume; set store.resume=auto to begin one")
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
    """Returns how this run differs from the one whose start a journal records."""
    if started is None:
        return []
    there = {**deciding(started["config"]), **leaves({"versions": started["versions"]})}
    here = {**deciding(experiment.config), **leaves({"versions": provenance.versions()})}
    return keys.differences(here, [there]) or []


def _execute(prepared: Prepared, store: Store, path: Path, sweep: str | None, console: Console) -> dict[str, Any]:
    """Runs Algorithm 1, publishes its last model, and records everything in the run's folder."""
    experiment, live = prepared.experiment, prepared.live
    info = _info(prepared, path, sweep)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "key": prepared.key,
        "status": "running",
        "variant": info.variant,
        "seed": info.seed,
        "device": info.device,
        "iterations": [],
    }
    with Journal(path / "journal.jsonl") as journal:
        tracker, correct_at = experiment.tracking.start(info), experiment.loop.correct_at
        folder = RunFolder(path, summary, journal, tracker, correct_at, experiment.reward, experiment.filter)
        with _recording_failure(folder):
            try:
                folder.begin((experiment.train, experiment.test), **_provenance(prepared, info))
                with naming_setting("store.dir", store.root):
                    leases.write(store, prepared.lease(path, "running"))
                with fallback.recording(journal.write):
                    model, lease = _iterate(prepared, store, folder, console)
                publish.save_model(model, live, prepared.chat, experiment.model, path / "model")
                leases.write(store, replace(lease, status="done"))
                leases.drop_unneeded(store, lease, ())
            finally:
                experiment.engine.release()
                live.release()
            whole = len(summary["iterations"]) > experiment.loop.iterations
            folder.end("finished" if whole else "stopped_empty")
    return summary


def _info(prepared: Prepared, path: Path, sweep: str | None) -> RunInfo:
    experiment = prepared.experiment
    model = model_name(experiment.settings, experiment.choices)
    name = f"{experiment.variant}-{model}-seed{experiment.loop.seed}"
    if isinstance(experiment.tracking, Wandb) and experiment.tracking.name:  # in a sweep, it is given for all jobs
        name = experiment.tracking.name if sweep is None else f"{experiment.tracking.name}-{name}"
    split = [] if experiment.test.name == "test" else [experiment.test.name]
    return RunInfo(
        name=name,
        group=sweep,
        variant=experiment.variant,
        seed=experiment.loop.seed,
        folder=path,
        config=experiment.config,
        choices=dict(experiment.choices),
        tags=[model, experiment.choices["dataset"], *split],
        references={x.id: x.references for part in (experiment.train, experiment.test) for x in part.questions},
        correct_at=experiment.loop.correct_at,
        commit=provenance.commit(),
        device=str(prepared.live.device),
        versions=provenance.versions(),
    )


def _provenance(prepared: Prepared, info: RunInfo) -> dict[str, object]:
    """Returns what the journal records of a run at its start."""
    splits = (prepared.experiment.train, prepared.experiment.test)
    return {
        "name": info.name,
        "group": info.group,
        "key": prepared.key,
        "config": info.config,
        "choices": info.choices,
        "tags": info.tags,
        "versions": info.versions,
        "machine": provenance.machine(prepared.live.device),
        "device": info.device,
        "commit": info.commit,
        "data": {split.name: provenance.data_digest(split.questions, split.skipped) for split in splits},
        "rows": {
            split.name: {name: len(getattr(split, name)) for name in ("questions", "skipped", "repeated")}
            for split in splits
        },
    }


@contextmanager
def _recording_failure(folder: RunFolder) -> Iterator[None]:
    """Records in the run's folder how the run ended, if it is interrupted or fails."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if folder.summary["status"] == "running":
            with suppress(OSError):
                folder.end("interrupted", str(stop) or "KeyboardInterrupt")
        raise
    except BaseException as error:
        status = "failed_nonfinite" if isinstance(error, NonFiniteError) else "failed"
        n = len(folder.summary["iterations"])
        with suppress(OSError):  # the failure may be a full disk
            folder.end(status, scrub(f"iteration {n}: {type(error).__name__}: {error}"))
        traceback.clear_frames(error.__traceback__)  # a sweep keeps the exception, and its frames would keep the model
        raise


def stages(prepared: Prepared) -> Stages:
    """Returns the computations of a run's stages, without the store."""
    experiment = prepared.experiment
    return Stages(
        live=prepared.live,
        chat=prepared.chat,
        engine=experiment.engine,
        batch=prepared.descriptions.batch,
        prompt=experiment.prompt,
        reward=experiment.reward,
        pairing=experiment.pairing,
        target=experiment.target,
        tune=experiment.finetune,
        loss=experiment.loss,
        sampling=prepared.descriptions.sampling,
        seed=experiment.loop.seed,
    )


def _iterate(prepared: Prepared, store: Store, folder: RunFolder, console: Console) -> tuple[Model, Lease]:
    """Runs the loop. Returns: the last model, and the lease for the stages that the run needed."""
    experiment = prepared.experiment
    if experiment.evaluation.n_init > 1 and key_of(experiment.reward) is None:
        log.warning("evaluation.n_init=%d: %s", experiment.evaluation.n_init, NO_KEY)
    watch = Watch(store, folder, experiment.store.explain)

    def progress(label: str, total: int, unit: str) -> AbstractContextManager[Advance]:
        return console.stage(f"n={len(folder.summary['iterations'])}  {label}", total, unit)

    steps = CachedStages(
        stages(prepared), replace(store, watch=watch), prepared.descriptions, experiment.keep, progress, folder.step
    )
    model, lease, empty = prepared.m_0, prepared.lease(folder.path, "running"), []
    for iteration in loop(experiment, prepared.m_0, steps):
        model = iteration.model
        seconds = {**watch.pop_seconds(), "loading": prepared.live.pop_loading_s()}
        folder.iteration(iteration, steps.training.get(iteration.n), seconds, watch.pop_reused())
        console.iteration(folder.summary["iterations"][-1])
        if odd := [one for one in iteration.left_out if one.reason != "truncated"]:
            (pair, reason), left_out = odd[0], counted(len(odd), "pair")
            log.warning("iteration %d: %s left out, first %s: %s", iteration.n, left_out, pair.id, REASONS[reason])
        if iteration.n and not iteration.kept:
            log.warning("iteration %d: %s", iteration.n, _why_empty(iteration, experiment))
            empty.append(iteration.n)
            lease = prepared.lease(folder.path, "running", empty)
            leases.write(store, lease)
        leases.drop_unneeded(store, lease, [model.key])
    watch.report()
    return model, lease


def _why_empty(iteration: Iteration[Model], experiment: Experiment) -> str:
    """Returns why an iteration has nothing to train on, and which setting to change."""
    if iteration.left_out:
        return advice.nothing_usable(iteration.pairs, iteration.left_out)
    samples = "sampling.n_corr" if experiment.target.corrects else "sampling.n_init"
    unmarked = attribute(experiment.reward, "unmarked")
    return advice.nothing_kept(iteration.pairs, experiment.filter, experiment.loop.correct_at, samples, unmarked)
