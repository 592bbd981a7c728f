"""`python -m stasc.dashboard PROJECT`: makes a W&B report on a project's runs, or without W&B, its specification."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from stasc.dashboard.varying import DEFAULT, Settings, check_settings, from_folders, from_wandb, varying
from stasc.machine import durable
from stasc.machine.stdio import outlive_readers
from stasc.settings.names import check_name
from stasc.tracking.redaction import scrub
from stasc.tracking.service import call_with_timeout, reason, shut_down
from stasc.tracking.wandb import check_project

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

T = TypeVar("T")

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
        local = _local(args)
        _check_file(path)
        if args.output:
            _write(path, args, local)
        elif not _logged_in():
            _write(path, args, local)
            print("W&B is offline, or you are not logged in: run `wandb login`, then the same command makes the report")
        else:
            _save(path, args, local)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; pip install 'stasc[dashboard]'")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {scrub(str(error))}")


def _local(args: argparse.Namespace) -> list[Settings]:
    """Returns the settings of the runs in --runs, by default multirun/GROUP. Raises: ValueError if --runs has none."""
    check_settings("--by", args.by, ())
    if args.runs:
        if not (runs := from_folders(args.runs)):
            raise ValueError(
                f"--runs {args.runs}: no finished run; expected the folder of a sweep, such as multirun/NAME"
            )
        return runs
    return from_folders(Path("multirun", args.group)) if args.group else []


def _report(args: argparse.Namespace, entity: str, runs: Sequence[Settings]) -> wr.Report:
    """Returns the report. Raises: ValueError if the runs do not have a setting of --by."""
    from stasc.dashboard.report import View, report

    check_settings("--by", args.by, runs)
    choices = [*dict.fromkeys(args.by)] or (varying(runs) if runs else DEFAULT)
    return report(args.project, entity, View(args.group, choices, args.by[0] if args.by else None))


def _save(path: Path, args: argparse.Namespace, local: Sequence[Settings]) -> None:
    """Saves the report in W&B, or writes its specification if W&B fails."""
    import wandb

    def ask() -> tuple[str, Sequence[Settings]]:
        api = wandb.Api()
        entity = args.entity or api.default_entity or ""
        project = f"{entity}/{args.project}" if entity else args.project
        return entity, local if args.runs else from_wandb(api, project, args.group)

    def call(action: Callable[[], T]) -> T:
        try:
            return call_with_timeout(SAVE_S, action)
        except Exception as error:
            shut_down()
            _write(path, args, local)
            sys.exit(f"error: W&B did not accept the report ({reason(error)}); its specification is in the file")

    entity, runs = call(ask)
    if not runs:
        place = f"group {args.group}" if args.group else f"project {args.project}"
        print(f"W&B has no finished runs in the {place} yet: the report shows them once they finish")
    made = _report(args, entity, runs or local)  # so that faults in the report itself are not blamed on W&B
    print(f"W&B report: {call(lambda: str(made.save().url))}")


def _write(path: Path, args: argparse.Namespace, runs: Sequence[Settings]) -> None:
    from stasc.dashboard.specification import check, specification

    data = specification(_report(args, args.entity or "", runs))
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
        usage="%(prog)s PROJECT [--group NAME] [--by SETTING ...] [--runs FOLDER] [--entity NAME] [--output FILE]",
        description="Make a W&B report on a project's finished runs: curves by variant, bars of accuracy for each "
        "choice that varies, samples. Each call makes a new report. If W&B is offline or unreachable, the report's "
        "specification is written to a file instead.",
    )
    parser.add_argument("project", metavar="PROJECT", help="W&B project, as in tracking.project")
    parser.add_argument("--group", metavar="NAME", help="only the runs of the sweep of this name")
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="SETTING",
        help="show bars for these config groups or settings, such as init, model, sampling.n_corr or seed, and curves "
        "by the first one (default: bars for all that vary, curves by variant)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="FOLDER",
        help="look up what varies in this sweep's folder (default: in W&B; without W&B, in multirun/NAME of --group)",
    )
    entity = os.environ.get("WANDB_ENTITY") or None
    parser.add_argument(
        "--entity", metavar="NAME", default=entity, help="W&B user or team (default: WANDB_ENTITY, else your own)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write the specification to this file and do not use W&B (fallback without W&B: dashboard-NAME.json)",
    )
    return parser


if __name__ == "__main__":
    main()
