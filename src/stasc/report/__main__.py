"""`python -m stasc.report FOLDER`: reports on a sweep, or on a run, as text and as files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stasc.machine.stdio import outlive_readers
from stasc.report.records import Analysis, Sweep
from stasc.report.wording import interval_text, number, p_text, plain

WIDE = 1000  # columns of output that does not go to a terminal


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the folder, analyses it, writes the files and prints the result."""
    outlive_readers()
    parser = argparse.ArgumentParser(prog="python -m stasc.report", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="multirun/NAME, or the folder of a run")
    folder: Path = parser.parse_args(arguments).folder
    try:
        from stasc.report import export
        from stasc.report.analysis.analysis import analyse
        from stasc.report.data.reading import read
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed; pip install 'stasc[report]'")
    try:
        sweep = read(folder)
        analysis = analyse(sweep)
        written = export.write(sweep, analysis, folder)
        written += _page(sweep, analysis, folder)
        show(analysis, Console())
    except (ValueError, OSError) as error:
        sys.exit(plain(f"error: {error}"))
    print(plain(f"written: {', '.join(os.path.relpath(folder / name) for name in written)}"))


def _page(sweep: Sweep, analysis: Analysis, folder: Path) -> list[str]:
    """Writes report.html. Returns: its name, or nothing if a library for charts is not installed."""
    try:
        from stasc.report.page import html
    except ModuleNotFoundError as error:
        print(f"no page: {error.name} is not installed; pip install 'stasc[report]'", file=sys.stderr)
        return []
    html.write(sweep, analysis, folder)
    return [html.PAGE]


def show(analysis: Analysis, out: Console) -> None:
    """Prints the headline, the effects, the variants and the notes."""
    out = out if out.is_terminal else Console(file=out.file, width=WIDE)
    _say(out, analysis.headline, analysis.certainty, analysis.power)
    if analysis.effects:
        out.print(effects_table(analysis))
    out.print(cells_table(analysis))
    for name, ceiling in analysis.ceilings.items():
        _say(out, f"{name}: {interval_text(ceiling, unit='%')}")
    for name, floor in analysis.noise_floor.items():
        reach = number(floor.high or 0.0)
        _say(out, f"Sampling noise of {name}: two seeds differ by at most {reach} pp in 95 % of cases.")
    _say(out, *(f"Note: {note}." for note in analysis.notes))


def _say(out: Console, *texts: str) -> None:
    for text in texts:
        if text:
            out.print(plain(text), markup=False, highlight=False, emoji=False, soft_wrap=not out.is_terminal)


def effects_table(analysis: Analysis) -> Table:
    """Returns the main effects, and below them the interactions, on both outcomes."""
    columns = ("correction", "adjusted p", "gain", "adjusted p")
    table = _table(f"effects at n = {analysis.n}, in pp with 95 % intervals; p over questions", "effect", *columns)
    gains = {effect.factors: effect for effect in analysis.effects if effect.outcome == "gain"}
    for effect in (effect for effect in analysis.effects if effect.outcome == "correction"):
        gain = gains[effect.factors]
        texts = [interval_text(one.interval, signed=True) for one in (effect, gain)]
        _add(table, effect.label, texts[0], p_text(effect.p_adjusted), texts[1], p_text(gain.p_adjusted))
    return table


def cells_table(analysis: Analysis) -> Table:
    """Returns the variants and baselines, one per row."""
    columns = ["n", "seeds", "initial", "correction", "gain", "over M_0's\ncorrection"]
    columns += ["wrong→\nright", "right→\nwrong", "kept", "steps"]
    table = _table("accuracies in % with 95 % intervals, at the last iteration", "variant", *columns)
    for cell in analysis.cells:
        accuracies = [interval_text(one) for one in (cell.initial, cell.correction)]
        gains = [number(one.value, signed=True) for one in (cell.gain, cell.over_correction)]
        changes = [number(cell.transitions[name]) for name in ("wrong_right", "right_wrong")]
        spent = [number(one, digits=0) for one in (cell.kept, cell.steps)]
        _add(table, cell.name, str(cell.n), str(len(cell.seeds)), *accuracies, *gains, *changes, *spent)
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _add(table: Table, *texts: str) -> None:
    table.add_row(*(Text(plain(text)) for text in texts))


if __name__ == "__main__":
    main()
