"""What the jobs of a sweep will need and take, before they start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from stasc.runs.prepare import Prepared, open_store
from stasc.store import leases
from stasc.store.artifacts import Store

Stages = list[tuple[Store, str, str]]  # of a job, by kind and key


def expect(prepared: Prepared, path: Path) -> None:
    """Tells the store of a run that is yet to come, so that what it needs is not dropped before."""
    store, ours = open_store(prepared), prepared.lease(path, "expected")
    if not any((lease.folder, lease.key) == (ours.folder, ours.key) for lease in leases.every(store)):
        leases.write(store, ours)


def seconds_left(jobs: Sequence[Stages], done: int) -> float | None:
    """What the jobs after the first `done` will take: each stage that is not there, as long as those of its kind took.

    A stage that several jobs share counts once. None if of some kind nothing has been computed yet.
    """
    took: dict[str, dict[str, float]] = defaultdict(dict)  # seconds of what is there, by kind and key
    missing: set[tuple[str, str]] = set()
    for number, stages in enumerate(jobs):
        for store, kind, key in stages:
            if key in took[kind]:
                continue
            if artifact := store.find(kind, key):
                took[kind][key] = artifact.seconds
            elif number >= done:  # what a job left out will not come
                missing.add((kind, key))
    if any(not took[kind] for kind, _ in missing):
        return None
    return sum(fmean(took[kind].values()) for kind, _ in missing)
