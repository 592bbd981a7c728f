"""Which run folders use a store, and which weights they still need.

A run says at its start what it will derive; a sweep says it for all its jobs before the first. Weights that no stage
still to be computed reads can go: what followed from them is kept, and they can be derived again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from stasc import fsx
from stasc.derivation import Step
from stasc.store import Damaged, Store, read_sealed, write_sealed


@dataclass(frozen=True)
class Lease:
    """What a run folder needs: `status` is expected, running or done, `final` the key of its last model.

    `steps` suppose that every iteration yet to come keeps something. `key` is the run's.
    """

    folder: str
    key: str
    status: str
    keep_models: str
    steps: tuple[Step, ...]
    final: str


def write(store: Store, lease: Lease) -> None:
    """Says what a run folder needs, in place of what it said before."""
    write_sealed(_path(store, lease.folder), asdict(lease))


def every(store: Store) -> Iterator[Lease]:
    """All leases. One that is damaged is set aside: its run writes it again when it goes on."""
    for path in sorted((store.root / "leases").glob("*.json")):
        if path.name.startswith(fsx.SCRATCH):
            continue
        try:
            lease = read_sealed(path)
            yield Lease(**{**lease, "steps": tuple(Step(*step) for step in lease["steps"])})
        except (Damaged, TypeError, KeyError) as damage:
            fsx.set_aside(path, f"store: the lease {path.name} is damaged ({damage})")


def remove(store: Store, folder: str) -> None:
    _path(store, folder).unlink(missing_ok=True)


def drop_unneeded(store: Store, lease: Lease, in_use: Iterable[str]) -> int:
    """Deletes the weights that a run made and that no run still needs. Returns: bytes freed."""
    needed = {*in_use, *_needed(store, every(store))}
    made = [step.key for step in lease.steps if step.kind == "finetune"]
    return sum(store.remove("model", key) for key in made if key not in needed)


def _needed(store: Store, leases: Iterable[Lease]) -> Iterator[str]:
    for lease in leases:
        if lease.keep_models == "all":
            yield from (step.key for step in lease.steps if step.kind == "finetune")
        yield lease.final
        if lease.status != "done":
            for step in lease.steps:
                if step.model and not (store.root / step.kind / step.key).exists():
                    yield step.model


def _path(store: Store, folder: str) -> Path:
    return store.root / "leases" / f"{hashlib.sha256(folder.encode()).hexdigest()[:16]}.json"
