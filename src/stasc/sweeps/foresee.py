"""Plans the jobs of a sweep before they start: announces what they need to the store, and estimates their time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from stasc.runs.prepare import Prepared, open_store
from stasc.store import leases
from stasc.store.artifacts import Store

Stages = list[tuple[Store, str, str]]  # a job's stages: store, kind, key


def expect(prepared: Prepared, path: Path) -> None:
    """Writes the lease of a run that has yet to start, so that the weights it needs are kept."""
    store, ours = open_store(prepared), prepared.lease(path, "expected")
    if not any((lease.folder, lease.key) == (ours.folder, ours.key) for lease in leases.every(store)):
        leases.write(store, ours)


def seconds_left(jobs: Sequence[Stages], done: int) -> float | None:
    """Estimates the time of the jobs after the first `done`, from the mean time of each kind of stage so far.

    A stage that several jobs share counts once. None while no stage of some missing kind has been computed.
    """
    took: dict[str, dict[str, float]] = defaultdict(dict)  # seconds of the stages in the store, by kind and key
    missing: set[tuple[str, str]] = set()
    for number, stages in enumerate(jobs):
        for store, kind, key in stages:
            if key in took[kind]:
                continue
            if artifact := store.find(kind, key):
                took[kind][key] = artifact.seconds
            elif number >= done:  # earlier jobs skipped their missing stages
                missing.add((kind, key))
    if any(not took[kind] for kind, _ in missing):
        return None
    return sum(fmean(took[kind].values()) for kind, _ in missing)
