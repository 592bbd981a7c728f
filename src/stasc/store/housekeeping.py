"""The command `python -m stasc.store`: lists, verifies and cleans the store."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from filelock import Timeout
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Column, Table

from stasc.machine.durable import SCRATCH
from stasc.machine.paths import CONF, path_of
from stasc.machine.sealed import Damaged, digest
from stasc.machine.stdio import outlive_readers
from stasc.store import leases
from stasc.store.artifacts import KEY, KINDS, OtherVersion, Store, committed
from stasc.store.leases import Lease
from stasc.units import counted, size_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns: the exit status."""
    outlive_readers()
    parser = argparse.ArgumentParser(prog="python -m stasc.store", description=__doc__)
    parser.add_argument("--dir", type=Path, help="the store's folder (default: store.dir of the settings)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="sizes by kind of stage, and the run folders that use the store")
    commands.add_parser("verify", help="check every file against its checksum; quarantine damaged artifacts")
    clean = commands.add_parser("clean", help="remove artifacts that no run folder refers to")
    clean.add_argument("--dry-run", action="store_true", help="only print what would be removed")
    given = parser.parse_args(arguments)
    try:
        root = path_of("store.dir", given.dir or OmegaConf.load(CONF / "config.yaml").store.dir)
        store = Store(root, {})
        if not root.is_dir():
            print(f"{root}: there is no store")
        elif given.command == "verify":
            return _verify(store)
        else:
            _list(store) if given.command == "list" else _clean(store, given.dry_run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class Item(NamedTuple):
    """A folder of the store: an artifact, or one that is quarantined, unfinished or half removed."""

    kind: str
    key: str
    state: str  # the kind of an artifact, or "quarantined", "unfinished", "half removed"
    folder: Path

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())


def _items(store: Store) -> Iterator[Item]:
    """Yields the folders that this program made. Others are left alone."""
    for folder in sorted(path for kind in KINDS for path in (store.root / kind).glob("*")):
        kind = folder.parent.name
        for state, pattern in (
            (kind, f"({KEY.pattern})"),
            ("quarantined", rf"({KEY.pattern})\.corrupt-\d+"),
            ("half removed", rf"{re.escape(SCRATCH)}[0-9a-f]+-({KEY.pattern})"),
        ):
            if found := re.fullmatch(pattern, folder.name):
                yield Item(kind, found[1], state, folder)
    for folder in sorted((store.root / "unfinished").glob("*")):
        if found := re.fullmatch(f"({'|'.join(KINDS)})-({KEY.pattern})", folder.name):
            yield Item(found[1], found[2], "unfinished", folder)


def _list(store: Store) -> None:
    table = Table("kind", *(Column(name, justify="right") for name in ("artifacts", "size")), box=box.SIMPLE_HEAD)
    sizes: dict[str, list[int]] = {state: [] for state in (*KINDS, "quarantined", "unfinished", "half removed")}
    for item in _items(store):
        sizes[item.state].append(item.size)
    for state, each in sizes.items():
        if each or state in KINDS:
            table.add_row(state, str(len(each)), size_text(sum(each)))
    table.add_section()
    table.add_row("total", str(sum(map(len, sizes.values()))), size_text(sum(map(sum, sizes.values()))))
    print(f"the store {store.root} holds")
    Console().print(table)
    users = sorted(leases.every(store), key=lambda lease: lease.folder)
    print("and is used by" if users else "and is used by no run folder")
    for lease in users:
        print(f"  {lease.folder} ({_status(store, lease)})")


def _status(store: Store, lease: Lease) -> str:
    """Returns how a run ended, if it did. Its lease says `running` from its start until it is done."""
    if lease.status != "expected" and not _refers(lease):
        return f"{lease.status}, but the folder is gone"
    if lease.status != "running":
        return lease.status
    recorded = "running"
    with suppress(OSError, ValueError, KeyError, TypeError):
        recorded = str(json.loads(Path(lease.folder, "summary.json").read_bytes())["status"])
    try:
        with store.lock("run", digest(lease.folder), wait=False):  # a living run holds it
            return "killed" if recorded == "running" else recorded
    except Timeout:
        return "running"
    except OSError:  # no permission to lock another user's store
        return recorded


def _verify(store: Store) -> int:
    whole = damaged = other = 0
    for item in _items(store):
        if item.state != item.kind:
            continue
        with store.lock(item.kind, item.key):
            try:
                committed(item.folder).verify()
                whole += 1
            except Damaged as damage:
                damaged += store.quarantine(item.kind, item.key, damage)
            except OtherVersion as error:
                print(error)
                other += 1
    print(f"{counted(whole, 'artifact')} whole, {damaged} damaged{' and quarantined' if damaged else ''}", end="")
    print(f", {other} not checked" if other else "")
    return 1 if damaged or other else 0


def _clean(store: Store, dry_run: bool) -> None:
    """Removes artifacts that no run folder refers to. A running run has a lease, and so keeps what it uses."""
    needed: set[tuple[str, str]] = set()
    for lease in leases.every(store):
        if _refers(lease):
            needed |= {(step.kind, step.key) for step in lease.steps}
        elif not dry_run:
            leases.remove(store, lease.folder)
    needed |= {("model", key) for kind, key in needed if kind == "finetune"}
    removed: list[int] = []  # sizes
    in_use = stay = 0
    for item in _items(store):
        if (item.kind, item.key) in needed and item.state in (item.kind, "unfinished"):
            stay += 1
            continue
        size = item.size
        if dry_run or _remove(store, item):
            removed.append(size)
        else:
            in_use += 1
    if not dry_run:
        _clean_locks(store)
    verb = "would remove" if dry_run else "removed"
    what = f"{counted(len(removed), 'artifact')}, {size_text(sum(removed))}, that no run folder refers to"
    print(f"{verb} {what}; {stay + in_use} stay", end="")
    print(f", {in_use} of them because a run holds them now" if in_use else "")


def _clean_locks(store: Store) -> None:
    """Removes the files of locks that nobody holds. A process that is opening one notices, and creates it again."""
    for path in (store.root / "locks").glob("*"):
        kind, _, key = path.name.partition("-")
        with suppress(Timeout), store.lock(kind, key, wait=False):
            path.unlink()


def _refers(lease: Lease) -> bool:
    """Whether the run's folder exists or, of a job that has not started, the sweep's folder."""
    folder = Path(lease.folder)
    return (folder.parent if lease.status == "expected" else folder).is_dir()


def _remove(store: Store, item: Item) -> bool:
    """Removes an item unless a run holds its lock. Returns: whether it was removed."""
    with suppress(Timeout), store.lock(item.kind, item.key, wait=False):
        if item.state == item.kind:
            store.remove(item.kind, item.key)
        else:
            shutil.rmtree(item.folder, ignore_errors=True)
        return True
    return False
