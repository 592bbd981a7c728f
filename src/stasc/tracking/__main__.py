"""The command `python -m stasc.tracking sync RUN_DIR`, which rebuilds W&B runs from run folders."""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stasc.machine.stdio import outlive_readers
from stasc.records import OptimizerStep
from stasc.settings.names import chosen_options
from stasc.tracking.journal import COMPLETE, read
from stasc.tracking.redaction import scrub
from stasc.tracking.tracker import RunInfo
from stasc.tracking.wandb import MODES, Wandb

NEEDED = ("name", "group", "variant", "seed", "config")  # fields of a run_started event
LINE = ("n", "question", "y1", "y2", "r1", "r2")  # fields of a line in pairs.jsonl and outcomes.jsonl
UPLOAD_S = 600  # long, as nothing waits for it
DEFAULTS: Mapping[str, Any] = {
    **{"project": "stasc", "entity": None, "group": None, "name": None, "job_type": None},
    **{"mode": "auto", "tags": [], "table_rows": 32},
}
Lines = Mapping[int, Sequence[Mapping[str, Any]]]  # lines of a file, by iteration


@dataclass(frozen=True)
class RecordedRun:
    """A run as its folder records it. `steps` are optimizer steps, by iteration."""

    info: RunInfo
    tracking: Mapping[str, Any]
    status: str
    error: str | None
    entries: Sequence[Mapping[str, Any]]
    steps: Mapping[int, Sequence[OptimizerStep]]
    pairs: Lines
    outcomes: Lines


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
    tracker = wandb.start(recorded.info, run_id or secrets.token_hex(4), UPLOAD_S)
    entries = {entry["n"]: entry for entry in recorded.entries}
    for n in sorted(entries.keys() | recorded.steps.keys()):
        for step in recorded.steps.get(n, ()):
            tracker.step(n, step)
        if n in entries:
            tracker.iteration(entries[n], recorded.pairs.get(n, ()), recorded.outcomes.get(n, ()))
    error = None if recorded.status in COMPLETE else recorded.error or "the run did not end"
    return tracker.finish(recorded.status, error)


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
    sync.add_argument("--id", help="continue the W&B run of this id: send the rows that it lacks")
    return parser


def load(folder: Path) -> RecordedRun:
    """Returns the run in a folder. A resumed run may record an event twice; the last one counts.

    Raises: ValueError that names file and line; OSError if there is no journal.
    """
    path = folder / "journal.jsonl"
    started: dict[str, Any] | None = None
    ended: dict[str, Any] = {}
    entries, steps = {}, {}
    for number, event in enumerate(read(path), 1):
        if event["event"] == "run_started":
            started, ended = event, {}
            if missing := [name for name in NEEDED if name not in event]:
                raise ValueError(f"{path}, line {number}: run_started has no {missing[0]}; an older version wrote it")
        elif event["event"] == "training":
            steps[event["n"]] = list(_steps(event))
        elif event["event"] == "iteration":
            entries[event["n"]] = {name: value for name, value in event.items() if name not in ("time", "event")}
        elif event["event"] == "run_ended":
            ended = event
    if started is None:
        raise ValueError(f"{path}: no run has started in this folder")
    return RecordedRun(
        info=_info(started, folder),
        tracking=started["config"].get("tracking", {}),
        status=ended.get("status", "running"),
        error=ended.get("error"),
        entries=[entries[n] for n in sorted(entries)],
        steps=steps,
        pairs=_lines(folder / "pairs.jsonl", "a pair", (*LINE, "kept")),
        outcomes=_lines(folder / "outcomes.jsonl", "an outcome", (*LINE, "sample")),
    )


def _info(started: Mapping[str, Any], folder: Path) -> RunInfo:
    """Returns what the event run_started tells of a run. Early versions recorded less."""
    config = started["config"]
    questions = folder / "questions.jsonl"
    lines = map(json.loads, questions.read_text(encoding="utf-8").splitlines()) if questions.exists() else ()
    return RunInfo(
        **{name: started[name] for name in NEEDED},
        folder=folder / "sync",  # W&B gets one of its own: a resumed run continues its own W&B run and not this one
        choices=started.get("choices") or chosen_options(config, {}),
        tags=started.get("tags", ()),
        references={line["id"]: line["references"] for line in lines},
        correct_at=config.get("correct_at", 1.0),
        commit=started.get("commit"),
        device=started.get("device", "unknown"),
        versions=started.get("versions", {}),
    )


def _steps(event: Mapping[str, Any]) -> Iterator[OptimizerStep]:
    """Yields the optimizer steps of an event, which has a column for each of their figures."""
    names = [field.name for field in fields(OptimizerStep)]
    for figures in zip(*(event[name] for name in names), strict=True):
        yield OptimizerStep(**dict(zip(names, figures, strict=True)))


def _lines(path: Path, what: str, needed: Sequence[str]) -> Lines:
    """Returns the lines of a file by iteration; a last line that a crash cut short is skipped."""
    lines: dict[int, list[Mapping[str, Any]]] = {}
    if not path.exists():
        return lines
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                given = json.loads(line)
                lines.setdefault(given["n"], []).append({**given, **{name: given[name] for name in needed}})
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: not {what} ({type(error).__name__}: {error})") from error
    return lines


if __name__ == "__main__":
    main()
