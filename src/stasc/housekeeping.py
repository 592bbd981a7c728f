"""The command `python -m stasc.store`: what the store holds, whether it is whole, and what can go."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import Timeout
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from stasc import leases, tracking
from stasc.run import CONF
from stasc.store import KINDS, Damaged, Store
from stasc.units import size_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns: the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stasc.store", description=__doc__)
    parser.add_argument("--dir", type=Path, help="the store's folder (default: store.dir of the settings)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="sizes by kind of stage, and the run folders that use the store")
    commands.add_parser("verify", help="check every file against its checksum; set aside what is damaged")
    clean = commands.add_parser("clean", help="remove what no run folder refers to")
    clean.add_argument("--dry-run", action="store_true", help="only say what would go")
    given = parser.parse_args(arguments)
    root = (given.dir or Path(OmegaConf.load(CONF / "config.yaml").store.dir)).expanduser()
    if not root.is_dir():
        print(f"{root}: there is no store")
        return 0
    store = Store(root, {})
    if given.command == "list":
        _list(store)
        return 0
    if given.command == "verify":
        return _verify(store)
    _clean(store, given.dry_run)
    return 0


def _list(store: Store) -> None:
    table = Table(title=str(store.root), box=box.SIMPLE_HEAD)
    table.add_column("kind")
    table.add_column("artifacts", justify="right")
    table.add_column("size", justify="right")
    rows = [(kind, [artifact.size for artifact in store.every(kind)]) for kind in KINDS]
    aside = [_size_of(folder) for kind in KINDS for folder in (store.root / kind).glob("*.corrupt-*")]
    rows += [("set aside", aside), ("unfinished", [_size_of(folder) for folder in _unfinished(store)])]
    for kind, sizes in rows:
        table.add_row(kind, str(len(sizes)), size_text(sum(sizes)))
    table.add_row("total", str(sum(len(sizes) for _, sizes in rows)), size_text(sum(sum(sizes) for _, sizes in rows)))
    out = Console()
    out.print(table)
    for lease in leases.every(store):
        gone = "" if Path(lease.folder).is_dir() else ", not there"
        out.print(f"{lease.folder} ({lease.status}{gone})", markup=False, highlight=False, soft_wrap=True)


def _verify(store: Store) -> int:
    whole = damaged = 0
    for kind in KINDS:
        for folder in sorted((store.root / kind).glob("*")):
            if "." in folder.name:
                continue
            artifact = store.find(kind, folder.name)  # sets aside what has no sound COMMIT.json
            try:
                if artifact is not None:
                    artifact.verify()
                    whole += 1
                    continue
            except Damaged as damage:
                store.set_aside(folder, str(damage))
            damaged += 1
    print(f"{whole} artifacts are whole, {damaged} are damaged{' and were set aside' if damaged else ''}")
    return 1 if damaged else 0


def _clean(store: Store, dry_run: bool) -> None:
    """An artifact that is being computed or read now is referred to by its run's folder."""
    needed: set[tuple[str, str]] = set()
    for lease in leases.every(store):
        folder = Path(lease.folder)
        if not (folder.parent if lease.status == "expected" else folder).is_dir():
            if not dry_run:
                leases.remove(store, lease.folder)
            continue
        needed |= {(step.kind, step.key) for step in lease.steps} | set(_journalled(folder))
    needed |= {("model", key) for kind, key in needed if kind == "finetune"}
    count = size = 0
    for kind in KINDS:
        for folder in sorted((store.root / kind).glob("*")):
            if (kind, folder.name) not in needed:
                count, size = count + 1, size + _size_of(folder)
                if not dry_run:
                    _remove(store, kind, folder)
    for folder in _unfinished(store):
        if tuple(folder.name.split("-", 1)) not in needed:
            count, size = count + 1, size + _size_of(folder)
            if not dry_run:
                _remove(store, folder.name.partition("-")[0], folder)
    print(f"{'would remove' if dry_run else 'removed'} {count} artifacts, {size_text(size)}")


def _remove(store: Store, kind: str, folder: Path) -> None:
    """Removes a folder unless a run holds its lock."""
    try:
        with store.lock(kind, folder.name.removeprefix(f"{kind}-"), wait=False):
            if "." in folder.name or folder.parent.name == "unfinished":
                shutil.rmtree(folder, ignore_errors=True)
            else:
                store.remove(kind, folder.name)
    except Timeout:
        return


def _journalled(folder: Path) -> Iterator[tuple[str, str]]:
    """The artifacts that a run's journal tells of, up to where it can be read."""
    try:
        for event in tracking.read(folder / "journal.jsonl"):
            if event["event"] == "stage":
                yield event["kind"], event["key"]
    except (OSError, ValueError):
        return


def _unfinished(store: Store) -> list[Path]:
    return sorted((store.root / "unfinished").glob("*"))


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
