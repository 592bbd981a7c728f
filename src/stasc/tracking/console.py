"""Shows a run in the terminal: progress on standard error, the final table on standard output."""

from __future__ import annotations

import io
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column, Table
from rich.text import Text

from stasc.records import REASONS, Advance
from stasc.units import counted

REPORT_EVERY_S = 30.0  # time between progress lines without a terminal
SPEED_WINDOW_S = 300.0  # basis of the time estimate; it is long, as answers come in large batches
WIDE = 1000  # columns of a table that is not printed to a terminal
TRANSITIONS = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")  # from the initial answer to its correction


class StderrHandler(logging.Handler):
    """Writes log lines to the current standard error: rich replaces it while a bar is shown, to print above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class Ended(NamedTuple):
    """The result of a sweep's job: a summary or an error."""

    folder: Path
    settings: Mapping[str, str]  # as overridden for this job
    summary: Mapping[str, Any] | None
    error: str | None


class Console:
    """The output of a run: each stage is a progress bar, and one line when it ends; without a terminal, only lines.

    Args:
        clock: returns seconds.
        split: name of the held-out questions.
        brief: whether a run that was complete before gets one line instead of a table.
    """

    def __init__(
        self,
        out: Terminal | None = None,
        err: Terminal | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        split: str = "test",
        brief: bool = False,
    ) -> None:
        if out is None and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # an encoding without arrows must not end a run
        self.out = out or Terminal()
        self.err = err or Terminal(stderr=True)
        self._clock, self._split, self._brief = clock, split, brief
        # Variables such as FORCE_COLOR make rich take a log file for a terminal, so ask the file too.
        self._animated = self.err.is_interactive and self.err.file.isatty()
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(40, max(10, self.err.width - 70))),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}", markup=False),
            _Times(Column(no_wrap=True)),
            console=self.err,
            transient=True,
            get_time=clock,
            speed_estimate_period=SPEED_WINDOW_S,
            disable=not self._animated,
        )

    @contextmanager
    def stage(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        """Shows the progress of `total` units of work; yields the progress callback. Stages may nest."""
        bars, begun = self._bars, self._clock()
        reported = begun
        bar = bars.add_task(label, total=total, unit=unit.removesuffix("s") if total == 1 else unit)
        bars.advance(bar, 0)  # starts the measurement of speed
        task = next(task for task in bars.tasks if task.id == bar)
        bars.start()

        def advance(k: int = 1) -> None:
            nonlocal reported
            bars.advance(bar, k)
            now = self._clock()
            if not self._animated and not task.finished and now - reported >= REPORT_EVERY_S:
                reported = now
                self._line(_progress(task, _times(task)))

        ending = "  stopped"
        try:
            yield advance
            ending = ""
        finally:
            bars.remove_task(bar)
            if not bars.tasks:
                bars.stop()
            self._line(_progress(task, _duration(self._clock() - begun) + ending))

    def iteration(self, summary: Mapping[str, Any]) -> None:
        """Prints the report of one iteration."""
        self._brief = False
        self._line(iteration_line(summary))

    def final(self, summary: Mapping[str, Any]) -> None:
        """Prints the run's table and a one-sentence verdict."""
        if not self._brief:
            self.out.print(final_table(summary, self._split))
        name = f"{summary['variant']}, seed {summary['seed']}: " if self._brief else ""
        self._say(name + verdict(summary, self._split))

    def sweep(self, jobs: Sequence[Ended]) -> None:
        """Prints a table of a sweep's jobs, their errors, and the folder of the results."""
        # rich assumes 80 columns for files and would fold cells.
        (self.out if self.out.is_terminal else Terminal(file=self.out.file, width=WIDE)).print(sweep_table(jobs))
        for job in jobs:
            if job.error:
                self._say(f"{job.folder.name}: {job.error}")
        self._say(f"results: {os.path.relpath(os.path.commonpath([job.folder.parent for job in jobs]))}")

    def _say(self, text: str) -> None:
        self.out.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def _line(self, text: str) -> None:
        self.err.print(text.rstrip(), markup=False, highlight=False, emoji=False, soft_wrap=True)


class _Times(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_times(task))


def _progress(task: Task, times: str) -> str:
    count = f"{task.completed:.0f}/{task.total:.0f}"
    return f"{task.description:<28} {count:>10} {task.fields['unit']:<8} {times}"


def _times(task: Task) -> str:
    """Returns the time passed and, once known, an estimate of the time left."""
    passed = _duration(task.elapsed or 0.0)
    return passed if task.time_remaining is None else f"{passed}, {_duration(task.time_remaining)} left"


def iteration_line(iteration: Mapping[str, Any]) -> str:
    """Returns a line about one iteration of summary.json."""
    n, test, train, finetune = (iteration[key] for key in ("n", "test", "train", "finetune"))
    parts = [f"iteration {n}", f"initial {_percent(test['init_acc'])}", f"correction {_percent(test['corr_acc'])}"]
    if train:
        parts.append(f"kept {_kept(train)}{_left_out(train)}")
        parts.append(f"loss {finetune['loss']:.3f}" if finetune else f"not trained: M_{n} = M_{n - 1}")
    else:
        parts.append("before any training")
    parts += _unmarked(test)
    return "  ".join([*parts, _duration(iteration["seconds"]["total"])])


def final_table(summary: Mapping[str, Any], split: str = "test") -> Table:
    """Returns a table of the run's iterations, at most 80 columns wide. Fractions are printed in percent."""
    iterations = summary["iterations"]
    title = f"{summary['variant']}, seed {summary['seed']}, {summary['device']}"
    if summary["status"] != "finished":
        title += f", {summary['status']}"
    if iterations:
        title += f": {_questions(iterations[0]['test'], split)}, in %"
    table = _table(title)
    transitions = [name.replace("_", "→\n") for name in TRANSITIONS]
    for name in ("iteration", "initial", "correction", *transitions, "kept", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for iteration in iterations:
        test = iteration["test"]
        fractions = [test[key] for key in ("init_acc", "corr_acc", *TRANSITIONS)]
        seconds = iteration["seconds"]["total"]
        table.add_row(
            str(iteration["n"]),
            *(f"{100 * fraction:.1f}" for fraction in fractions),
            _kept(iteration["train"]) if iteration["train"] else "-",
            f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}",
        )
    return table


def sweep_table(jobs: Sequence[Ended]) -> Table:
    """Returns a table of a sweep's jobs with the settings in which they differ.

    It shows the correction accuracies of M_0 and the last model in percent, and the gain in percentage points.
    """
    failed = sum(job.error is not None for job in jobs)
    title = counted(len(jobs), "job") + (f", {failed} failed" if failed else "") + "; correction accuracy in %"
    table = _table(title)
    names = dict.fromkeys(name for job in jobs for name in job.settings)
    swept = [name for name in names if len({job.settings.get(name) for job in jobs}) > 1]
    for name in swept:
        table.add_column(Text(name.replace(".", ".\n")), overflow="fold")
    table.add_column("status", no_wrap=True)
    for name in ("M_0", "M_N", "gain"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for job in jobs:
        row = [*(job.settings.get(name, "-") for name in swept), job.summary["status"] if job.summary else "failed"]
        row += ["-"] * 3
        if job.summary and job.summary["iterations"]:
            first, last = (job.summary["iterations"][i]["test"]["corr_acc"] for i in (0, -1))
            row[-3:] = [f"{100 * first:.1f}", f"{100 * last:.1f}", f"{100 * (last - first):+.1f}"]
        table.add_row(*map(Text, [*row, job.folder.name]))
    return table


def _table(title: str) -> Table:
    return Table(title=Text(title), box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)


def verdict(summary: Mapping[str, Any], split: str = "test") -> str:
    """Returns one sentence that compares the last iteration with M_0."""
    if not summary["iterations"]:
        return "No iteration was evaluated."
    first, last = (summary["iterations"][i]["test"] for i in (0, -1))
    if len(summary["iterations"]) == 1:
        return (
            f"Without training: initial accuracy {_percent(first['init_acc'])}, correction accuracy "
            f"{_percent(first['corr_acc'])}, {_questions(first, split)}.{_votes(first)}"
        )
    return (
        f"Correction accuracy {_percent(first['corr_acc'])} -> {_percent(last['corr_acc'])} "
        f"({_points(last['corr_acc'] - first['corr_acc'])} over M_0's correction, "
        f"{_points(last['corr_acc'] - first['init_acc'])} over M_0's initial answer), "
        f"{_questions(last, split)}."
    )


def _votes(evaluated: Mapping[str, Any]) -> str:
    """Returns a sentence about majority vote and pass@k, if questions have several initial answers."""
    if "vote_k" not in evaluated:
        return ""
    k, samples = evaluated["vote_k"], evaluated["samples"]
    return (
        f" Majority vote of {k} initial answers, which take the tokens of an answer and its correction: "
        f"{_percent(evaluated['vote_acc'])}; of {samples}: {_percent(evaluated['vote_all_acc'])}; "
        f"pass@{samples}: {_percent(evaluated['pass_acc'])}."
    )


def _unmarked(evaluated: Mapping[str, Any]) -> list[str]:
    """Returns the shares of answers without the answer marker, unless both are 0."""
    shares = [evaluated.get(f"{name}_unmarked", 0.0) for name in ("init", "corr")]
    return [f"without the answer marker {' and '.join(map(_percent, shares))}"] if any(shares) else []


def _questions(evaluated: Mapping[str, Any], split: str) -> str:
    return counted(evaluated["questions"], f"{split} question")


def _kept(train: Mapping[str, Any]) -> str:
    return f"{train['kept']} / {train['pairs']}"


def _left_out(train: Mapping[str, Any]) -> str:
    """Returns the counts of pairs that passed the filter but are not trained on, by reason."""
    counts = {reason: train.get(f"left_out_{reason}", 0) for reason in REASONS}
    return "".join(f", left out {count} {reason}" for reason, count in counts.items() if count)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _points(difference: float) -> str:
    """Returns signed percentage points; zero is +0.0."""
    return f"{round(100 * difference, 1) + 0.0:+.1f} pp"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=math.floor(seconds)))
