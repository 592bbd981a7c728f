"""`python -m stasc.dashboard PROJECT`: makes a W&B report on a project's runs, or without W&B, its specification."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from stasc.machine import durable
from stasc.machine.stdio import outlive_readers
from stasc.settings.names import check_name
from stasc.tracking.redaction import scrub
from stasc.tracking.wandb import call_with_timeout, check_project, reason, shut_down

SAVE_S = 120  # W&B itself times out after 20 s, several times in a row


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line. Exits with status 1 if W&B does not accept the report."""
    outlive_readers()
    args = _parser().parse_args(arguments)
    path = args.output or Path(f"dashboard-{args.group or args.project}.json")
    try:
        check_project("PROJECT", args.project)
        for option, name in (("--entity", args.entity), ("--group", args.group)):
            if name is not None:
                check_name(option, name)
        _check_file(path)
        if args.output:
            _write(path, args)
        elif not _logged_in():
            _write(path, args)
            print("W&B is offline, or you are not logged in: run `wandb login`, then the same command makes the report")
        else:
            _save(path, args)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; pip install 'stasc[dashboard]'")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {scrub(str(error))}")


def _save(path: Path, args: argparse.Namespace) -> None:
    """Saves the report in W&B, or writes its specification if W&B fails."""
    import wandb

    from stasc.dashboard.report import report

    def save() -> str:
        entity = args.entity or wandb.Api().default_entity or ""
        return str(report(args.project, entity, args.group).save().url)

    report(args.project, "", args.group)  # so that faults in the report itself are not blamed on W&B
    try:
        url = call_with_timeout(SAVE_S, save)
    except Exception as error:
        shut_down()
        _write(path, args)
        sys.exit(f"error: W&B did not accept the report ({reason(error)}); its specification is in the file")
    print(f"W&B report: {url}")


def _write(path: Path, args: argparse.Namespace) -> None:
    from stasc.dashboard.report import report
    from stasc.dashboard.specification import check, specification

    data = specification(report(args.project, args.entity or "", args.group))
    check(data)
    durable.write(path, data)
    print(f"written: {path}")


def _check_file(path: Path) -> None:
    """Checks that the file is new or an earlier specification. Raises: ValueError, OSError."""
    from stasc.dashboard.specification import check

    try:
        check(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(f"{path} exists and is {error}: give another --output, or remove it") from error


def _logged_in() -> bool:
    import wandb

    silent = wandb.Settings(silent=True)
    return bool(wandb.setup(silent).settings.mode == "online" and wandb.login(prompt=False, verify=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stasc.dashboard",
        description="Make a W&B report on a project's runs: curves by variant, accuracy by choice, samples. Each call "
        "makes a new report. If W&B is offline or unreachable, its specification is written to a file instead.",
    )
    parser.add_argument("project", metavar="PROJECT", help="W&B project, as in tracking.project")
    entity = os.environ.get("WANDB_ENTITY") or None
    parser.add_argument("--entity", default=entity, help="W&B user or team (default: WANDB_ENTITY, else your own)")
    parser.add_argument("--group", metavar="NAME", help="only the runs of the sweep of this name")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the specification to this file and do not use W&B (fallback without W&B: dashboard-NAME.json)",
    )
    return parser


if __name__ == "__main__":
    main()
