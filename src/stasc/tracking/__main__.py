"""The command `python -m stasc.tracking sync RUN_DIR`, which rebuilds W&B runs from run folders."""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stasc.machine.stdio import outlive_readers
from stasc.records import Answer, Pair, Question
from stasc.settings.names import chosen_options
from stasc.tracking.journal import COMPLETE, read
from stasc.tracking.redaction import scrub
from stasc.tracking.tracker import RunInfo
from stasc.tracking.wandb import MODES, Wandb

NEEDED = ("name", "group", "variant", "seed", "config")  # fields of a run_started event
UPLOAD_S = 600  # long, as nothing waits for it
DEFAULTS: Mapping[str, Any] = {
    **{"project": "stasc", "entity": None, "group": None, "name": None, "job_type": None},
    **{"mode": "auto", "tags": [], "sample_pairs": 32},
}


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder records it; `pairs` are by iteration, each with whether it was kept."""

    info: RunInfo
    tracking: Mapping[str, Any]
    status: str
    entries: Sequence[Mapping[str, Any]]
    pairs: Mapping[int, Sequence[tuple[Pair, bool]]]


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
    if missing := [str(folder) for folder, whole in zip(args.run_dir, arrived, strict=True) if not whole]:
        sys.exit(f"error: W&B did not take all of {', '.join(missing)}")


def _wandb(args: argparse.Namespace, recorded: RecordedRun) -> Wandb:
    """Returns the W&B settings: those of the command line, else of the run, else the defaults."""
    options = {"project": args.project, "entity": args.entity, "mode": args.mode}
    given = {name: recorded.tracking[name] for name in DEFAULTS if name in recorded.tracking}
    return Wandb(**{**DEFAULTS, **given, **{name: value for name, value in options.items() if value is not None}})


def _send(recorded: RecordedRun, wandb: Wandb, run_id: str | None) -> bool:
    """Sends a whole run. Returns whether all of it arrived."""
    recorded.info.folder.mkdir(exist_ok=True)
    tracker, arrived = wandb.start(recorded.info, run_id or secrets.token_hex(4), UPLOAD_S), True
    for entry in recorded.entries:
        pairs = recorded.pairs.get(entry["n"], ())
        arrived &= tracker.iteration(entry, [pair for pair, _ in pairs], [pair for pair, kept in pairs if kept])
    return tracker.finish(recorded.status, recorded.status not in COMPLETE, recorded.entries) and arrived


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


def load(folder: Path) -> RecordedRun:
    """Returns the run in a folder. A resumed run may record an event twice; the last one counts.

    Raises: ValueError that names file and line; OSError if there is no journal.
    """
    path = folder / "journal.jsonl"
    started: dict[str, Any] | None = None
    status, entries = "running", {}
    for number, event in enumerate(read(path), 1):
        if event["event"] == "run_started":
            started, status = event, "running"
            if missing := [name for name in NEEDED if name not in event]:
                raise ValueError(f"{path}, line {number}: run_started has no {missing[0]}; an older version wrote it")
        elif event["event"] == "iteration":
            entries[event["n"]] = {name: value for name, value in event.items() if name not in ("time", "event")}
        elif event["event"] == "run_ended":
            status = event["status"]
    if started is None:
        raise ValueError(f"{path}: no run has started in this folder")
    # W&B gets a folder of its own, so that the run, if resumed, continues its own W&B run and not this one.
    choices = started.get("choices") or chosen_options(started["config"], {})  # early versions did not record choices
    info = RunInfo(**{name: started[name] for name in NEEDED}, folder=folder / "sync", choices=choices)
    tracking = started["config"].get("tracking", {})
    return RecordedRun(info, tracking, status, [entries[n] for n in sorted(entries)], _pairs(folder / "pairs.jsonl"))


def _pairs(path: Path) -> dict[int, list[tuple[Pair, bool]]]:
    if not path.exists():
        return {}
    found = {}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):  # a crash cut it short
                break
            try:
                given = json.loads(line)
                pair = _pair(given)
                found[given["n"], pair.question.id, pair.i, pair.seen, pair.k] = pair, bool(given["kept"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not a pair ({type(error).__name__}: {error})") from error
    pairs: dict[int, list[tuple[Pair, bool]]] = {}
    for (n, *_), pair_and_kept in found.items():
        pairs.setdefault(n, []).append(pair_and_kept)
    return pairs


def _pair(given: Mapping[str, Any]) -> Pair:
    # In schema 1, `question` is the id, and the text is not recorded.
    question = Question(given.get("question_id", given["question"]), given["question"], ())
    y1, y2 = Answer(given["y1"], 0), Answer(given["y2"], 0)
    return Pair(question, given["i"], given["seen"], given["k"], y1, y2, given["r1"], given["r2"])


if __name__ == "__main__":
    main()
