"""The command `python -m stasc.tracking sync RUN_DIR`, which rebuilds W&B runs from run folders."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stasc.machine.stdio import outlive_readers
from stasc.tracking.redaction import scrub
from stasc.tracking.sync import RecordedRun, load
from stasc.tracking.wandb import MODES, Wandb

UPLOAD_S = 600  # long, as nothing waits for it
DEFAULTS: Mapping[str, Any] = {
    **{"project": "stasc", "entity": None, "group": None, "name": None, "job_type": None},
    **{"mode": "auto", "tags": [], "sample_pairs": 32},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exits with status 1 if a folder can't be read, or W&B did not take all of it."""
    outlive_readers()
    args = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("stasc").setLevel(logging.INFO)
    try:
        if args.id and len(args.run_dir) > 1:
            raise ValueError(f"--id {args.id}: expected one RUN_DIR, got {len(args.run_dir)}")
        loaded = [load(folder) for folder in args.run_dir]  # check all before sending any
        runs = [(recorded, _wandb(args, recorded)) for recorded in loaded]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {scrub(str(error))}")
    arrived = [_send(recorded, wandb, args.id) for recorded, wandb in runs]
    if not all(arrived):
        missing = [str(folder) for folder, all_of_it in zip(args.run_dir, arrived, strict=True) if not all_of_it]
        sys.exit(f"error: W&B did not take all of {', '.join(missing)}")


def _wandb(args: argparse.Namespace, recorded: RecordedRun) -> Wandb:
    """Returns the W&B settings: those of the command line, else of the run, else the defaults."""
    options = {"project": args.project, "entity": args.entity, "mode": args.mode}
    given = {name: recorded.tracking[name] for name in DEFAULTS if name in recorded.tracking}
    return Wandb(**{**DEFAULTS, **given, **{name: value for name, value in options.items() if value is not None}})


def _send(recorded: RecordedRun, wandb: Wandb, run_id: str | None) -> bool:
    recorded.info.folder.mkdir(exist_ok=True)
    return recorded.send(wandb.start(recorded.info, run_id or secrets.token_hex(4), UPLOAD_S))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stasc.tracking", description="Manages W&B runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    sync = commands.add_parser(
        "sync",
        help="rebuild a W&B run from a run's folder",
        description="Rebuild a W&B run from journal.jsonl and pairs.jsonl of a run's folder: its name, group, settings "
        "and every iteration, under a new id. Offline, its files go to RUN_DIR/sync.",
    )
    sync.add_argument("run_dir", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run")
    sync.add_argument("--project", help="W&B project (default: the run's tracking.project, else stasc)")
    sync.add_argument("--entity", help="W&B user or team (default: the run's tracking.entity, else your own)")
    sync.add_argument("--mode", choices=MODES, help="default: the run's tracking.mode, else auto: online if logged in")
    sync.add_argument("--id", help="continue the W&B run of this id: send the iterations after its last one")
    return parser


if __name__ == "__main__":
    main()
