"""Compares this project with its peers: `python -m stasc.bench`."""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from stasc.bench import race, report
from stasc.bench.contender import Work
from stasc.bench.works import GROWTH, Maker
from stasc.machine import durable, provenance
from stasc.machine.stdio import outlive_readers

WORKS = ("S1", "S2", "L", "T1", "T2", "growth")
REPETITIONS = 3
WIDTH = 140  # table width without a terminal


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    names = [peer.name for peer in race.PEERS]
    parser = argparse.ArgumentParser(prog="python -m stasc.bench", description=__doc__)
    parser.add_argument("--only", type=_names(WORKS), default=WORKS, help=f"works to run, of {','.join(WORKS)}")
    parser.add_argument("--peers", type=_names(names), default=names, help=f"peers to run, of {','.join(names)}")
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help="of each pair of contenders (default: %(default)s)"
    )
    parser.add_argument("--gsm8k", metavar="FILE", help="JSON Lines with question and answer; L is left out without it")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="environments, work files and logs")
    parser.add_argument("--set", action="append", default=[], metavar="PEER.NAME=VALUE", help="a contender's setting")
    parser.add_argument("--write", action="store_true", help="write BENCHMARKS.md even if only a part was run")
    parser.add_argument("--page", type=Path, default=Path("BENCHMARKS.md"), help="where the result is written")
    parser.add_argument("overrides", nargs="*", help="settings of all works, as for stasc.run, e.g. model=qwen2_5_0_5b")
    return parser.parse_args(argv)


def _names(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def names(text: str) -> tuple[str, ...]:
        given = tuple(name for name in text.split(",") if name)
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return given

    return names


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    outlive_readers()
    args = arguments(argv)
    err = Console(stderr=True)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    began, commit = datetime.datetime.now(datetime.UTC), provenance.commit()  # before the page is written
    arena = race.Arena(args.folder.absolute(), torch.get_num_threads(), _options(args.set))
    peers = [peer for peer in race.PEERS if peer.name in args.peers]
    works, left_out = _make(args, err)
    whole = tuple(args.only) == WORKS and len(peers) == len(race.PEERS) and args.repetitions >= REPETITIONS
    write = args.write or (whole and not left_out and not args.overrides and not args.set)

    def tables(grown: Sequence[race.Outcome]) -> list[report.Table]:
        made = report.tables(outcomes, grown, left_out)
        if write:  # after each work, since all take hours
            durable.write(args.page, report.page(made, _facts(began, commit, arena.threads, args.repetitions)).encode())
            err.print(f"written: {args.page}")
        return made

    outcomes: list[race.Outcome] = []
    for work in works:
        if not work.name.startswith("G"):
            rivals = [peer for peer in peers if peer.trains == work.trains]
            outcomes.append(race.race(arena, work, rivals, args.repetitions, err.print))
            tables([])
    growing = [work for work in works if work.name.startswith("G")]
    console.print(*tables(race.grow(arena, growing, args.repetitions, err.print)))


def _options(settings: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns settings by contender. Raises: SystemExit for one that is not PEER.NAME=VALUE."""
    options: dict[str, dict[str, str]] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        peer, dot, option = name.partition(".")
        if not (equals and dot):
            raise SystemExit(f"error: --set {setting}: expected PEER.NAME=VALUE, such as vllm.dtype=bfloat16")
        options.setdefault(peer, {})[option] = value
    return options


def _make(args: argparse.Namespace, err: Console) -> tuple[list[Work], dict[str, str]]:
    """Makes the works that were asked for. Returns them, and the reasons why works are missing."""
    maker = Maker(args.overrides, args.gsm8k)
    wanted = [name for name in args.only if name != "growth"]
    wanted += [f"G{size}" for size in GROWTH if "growth" in args.only]
    works, left_out = [], {}
    for name in wanted:
        err.print(f"making {name}")
        try:
            works.append(maker.makers()[name]())
        except LookupError as error:
            left_out[name] = str(error)
    return works, left_out


def _facts(began: datetime.datetime, commit: str | None, threads: int, repetitions: int) -> dict[str, str]:
    machine = provenance.machine(torch.device("cpu"))
    ended = datetime.datetime.now(datetime.UTC)
    return {
        "date": f"{began:%Y-%m-%d}, {(ended - began).total_seconds() / 60:.0f} minutes in all",
        "commit": commit or "unknown",
        "processor": f"{machine['processor']}, {threads} threads for every contender",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "repetitions": f"{repetitions} of each pair, after a warm-up",
    }


if __name__ == "__main__":
    main()
