"""Leases: which run folders use a store, and which weights they still need.

A run writes its lease when it starts, and a sweep those of all its jobs before the first starts. Weights that no
missing stage reads are evicted: the stages computed from them are kept, and the weights can be derived again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from stasc.machine import durable
from stasc.machine.sealed import Damaged, read_sealed, write_sealed
from stasc.store.artifacts import SCHEMA, OtherVersion, Store
from stasc.store.plan import Step


@dataclass(frozen=True)
class Lease:
    """The artifacts and weights that a run needs. `key` is the run's, `status` is expected, running or done.

    `steps` are its stages if every iteration to come keeps something; `final` is the key of its last model.
    """

    folder: str
    key: str
    status: str
    keep_models: str
    steps: tuple[Step, ...]
    final: str


def write(store: Store, lease: Lease) -> None:
    """Writes the lease of a run folder, in place of an earlier one. The weights that it needs are kept from then on."""
    with _lock(store):
        durable.sweep(store.root / "leases")
        list(every(store))  # raises before anything is sampled if one cannot be read
        write_sealed(_path(store, lease.folder), {"schema": SCHEMA, **asdict(lease)})


def every(store: Store) -> Iterator[Lease]:
    """Yields all leases. Quarantines damaged ones: the run writes its lease again on resume. Raises: OtherVersion."""
    for path in sorted((store.root / "leases").glob("*.json")):
        if path.name.startswith(durable.SCRATCH):
            continue
        try:
            lease = read_sealed(path)
            if (schema := lease.pop("schema")) != SCHEMA:
                found = f"{path} has schema {schema}, and this version of stasc reads {SCHEMA}"
                raise OtherVersion(f"{found}: set store.dir to another folder")
            yield Lease(**{**lease, "steps": tuple(Step(*step) for step in lease["steps"])})
        except (Damaged, TypeError, KeyError) as damage:
            durable.quarantine(path, f"store: the lease {path.name} is damaged ({damage})")


def remove(store: Store, folder: str) -> None:
    """Removes the lease of a run folder, if it has one."""
    _path(store, folder).unlink(missing_ok=True)


def drop_unneeded(store: Store, lease: Lease, in_use: Iterable[str]) -> int:
    """Evicts the weights that a run made and that no run still needs. Returns: bytes freed."""
    with _lock(store):
        needed = {*in_use, *_needed(store.root, every(store))}
        made = [step.key for step in lease.steps if step.kind == "finetune"]
        return sum(store.remove("model", key) for key in made if key not in needed)


def to_read(root: Path, steps: Sequence[Step], final: str) -> Iterator[str]:
    """Yields the models whose weights a run will still read: its last one, and those that missing stages read.

    Where weights are missing, the models that they are derived from follow.
    """
    start = {step.key: step.model for step in steps if step.kind == "finetune"}
    wanted = [final, *(step.model for step in steps if step.model and not (root / step.kind / step.key).exists())]
    seen: set[str] = set()
    for model in wanted:
        at: str | None = model
        while at and at not in seen:
            seen.add(at)
            yield at
            at = None if (root / "model" / at).exists() else start.get(at)


def _needed(root: Path, leases: Iterable[Lease]) -> Iterator[str]:
    for lease in leases:
        if lease.keep_models == "all":
            yield from (step.key for step in lease.steps if step.kind == "finetune")
        if lease.status == "done":
            yield lease.final
        else:
            yield from to_read(root, lease.steps, lease.final)


def _lock(store: Store) -> AbstractContextManager[None]:
    return store.lock("leases", "", busy="reading leases")


def _path(store: Store, folder: str) -> Path:
    return store.root / "leases" / f"{hashlib.sha256(folder.encode()).hexdigest()[:16]}.json"
