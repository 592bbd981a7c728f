"""Sends a run to Weights & Biases as it proceeds. No failure of W&B stops or changes the run."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stasc.records import OptimizerStep
from stasc.tracking import metrics
from stasc.tracking.earlier import EarlierStarts
from stasc.tracking.journal import COMPLETE
from stasc.tracking.metrics import Row
from stasc.tracking.service import (
    SHUT_DOWN_S,
    Outage,
    answers,
    caches,
    call_with_timeout,
    home,
    reason,
    service,
    shut_down,
)
from stasc.tracking.tracker import RunInfo

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__package__)

LOG_S = 20
TABLES_S = 10  # the library asks the server for each table, and blocks if there is no answer
OF_THE_END = ("final/", "last/", "error")  # summary keys that an earlier end may have left


class Mirror:
    """A W&B run. Its first failure is logged as one warning; after it the run is only ended.

    A row has a fixed number, its step in W&B, whichever start of the run sends it. Rows below `first_step` are on the
    server, or in the files of `earlier` starts. If a part of the run does not arrive, the log gives the command
    `repair`.
    """

    def __init__(
        self,
        run: wandb.Run,
        info: RunInfo,
        earlier: EarlierStarts,
        first_step: int,
        table_rows: int,
        upload_s: float,
        outage: Outage,
        repair: str | None,
    ) -> None:
        self._run, self._info, self._earlier, self._outage = run, info, earlier, outage
        self._first_step, self._table_rows, self._upload_s = first_step, table_rows, upload_s
        self._repair, self._service = repair, service()
        self._broken = self._without_tables = False
        self._counter, self._entries = metrics.StepCounter(), list[Mapping[str, Any]]()
        self._first, self._charts = Row(), dict[str, bool]()  # first values of metrics; whether each has a chart
        self._latest = Row()  # the last value of each metric
        self._began = self._tables_due = False
        self._tables: dict[str, list[list[Any]]] = {"test": [], "pairs": []}

    def step(self, n: int, step: OptimizerStep) -> None:
        number, row = self._counter.row(n, step)
        self._send(LOG_S, lambda: self._log(number, row, "train/global_step"))

    def iteration(
        self, entry: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]], outcomes: Sequence[Mapping[str, Any]]
    ) -> None:
        self._entries.append(entry)
        number = self._counter.iteration(entry["n"])
        row = metrics.iteration_row(entry, self._entries[0])
        self._send(LOG_S, lambda: self._log(number, row, "iteration"))
        if self._table_rows:
            self._tables["test"] += metrics.test_rows(self._info, outcomes, self._table_rows)
            self._tables["pairs"] += metrics.pair_rows(self._info, pairs, self._table_rows)
            self._tables_due = True
            if number + 1 >= self._first_step and not self._without_tables:
                self._send_tables(lambda: self._log_tables(number + 1, entry["n"]))

    def finish(self, status: str, error: str | None) -> bool:
        """Ends the W&B run. Waits at most `upload_s` and 6 s; less if tables failed and the server does not answer."""
        began, online = time.monotonic(), not self._run.offline
        down = online and self._without_tables and not answers()
        if self._tables_due and not down and not self._broken:
            self._without_tables = False
            self._send_tables(lambda: self._run.summary.update(self._new_tables()))
        summary = metrics.summary(status, error, self._entries)
        upload_s = 0 if down else max(0, self._upload_s - (time.monotonic() - began))
        self._send(upload_s + SHUT_DOWN_S, lambda: self._end(1 if error is not None else 0, summary), always=True)
        # The service may have died, but the next run of this process needs one; or it hangs, and would delay our end.
        if self._broken:
            shut_down(self._service)
        whole = not self._broken and not self._without_tables
        if not whole:
            if online:
                self._outage.begins()
            if self._repair:
                log.warning("W&B lacks a part of this run; to send it: %s", self._repair)
        elif online and status in COMPLETE:  # so the server has all that the caches and files of earlier starts hold
            for folder in caches(self._info.folder):
                shutil.rmtree(folder, ignore_errors=True)
            self._earlier.mark_synced()
        return whole

    def _log(self, number: int, row: Row, x: str) -> None:
        self._define(row, x)
        self._latest |= row
        if number >= self._first_step:
            self._begin()
            self._run.log(row, step=number, commit=True)

    def _define(self, row: Row, x: str) -> None:
        """Defines each metric's x-axis when it first appears, and gives it a chart as soon as it is informative."""
        for name in row:
            first = name not in self._first
            self._first.setdefault(name, row[name])
            chart = self._charts.get(name, False) or metrics.informative(name, row, self._first)
            if first or chart != self._charts[name]:
                axis = None if name == x else x
                self._run.define_metric(name, step_metric=axis, hidden=not chart, overwrite=True)
            self._charts[name] = chart

    def _begin(self) -> None:
        """Sets the summary before the first row of this start, and removes keys of an earlier end."""
        if not self._began:
            self._began = True
            self._summarise({**self._latest, "status": "running"})

    def _summarise(self, summary: Row) -> None:
        names = [*self._run.summary.keys()]
        for name in names:
            if name.startswith(OF_THE_END) and name not in summary:
                del self._run.summary[name]
        self._run.summary.update(summary)

    def _send_tables(self, action: Callable[[], None]) -> None:
        """Sends tables. If that fails, later rows are sent without them, and the end of the run tries again."""
        try:
            with home(self._info.folder):
                call_with_timeout(TABLES_S, action)
            self._tables_due = False
        except Exception as error:
            log.warning("W&B does not take tables (%s); metrics are sent without them", reason(error))
            self._without_tables = True

    def _log_tables(self, number: int, n: int) -> None:
        """Logs tables of all rows so far, in a row of their own, so that a failure costs no metrics.

        W&B's incremental tables lose or repeat rows after a resume.
        """
        if not self._broken and (tables := self._new_tables()):
            self._run.define_metric("tables/*", step_metric="iteration")
            self._run.log({"iteration": n, **tables}, step=number, commit=True)

    def _new_tables(self) -> Row:
        import wandb

        columns = {"test": metrics.TEST_COLUMNS, "pairs": metrics.PAIR_COLUMNS}
        return {
            f"tables/{name}": wandb.Table(columns=[*columns[name]], data=[*rows])
            for name, rows in self._tables.items()
            if rows
        }

    def _end(self, code: int, summary: Row) -> None:
        try:
            if not self._broken:
                self._summarise(summary if self._began else {**self._latest, **summary})
        finally:
            self._run.finish(exit_code=code)

    def _send(self, seconds: float, action: Callable[[], object], always: bool = False) -> None:
        """Calls an action within `seconds`. After a failure only those that must be called `always` still are."""
        if self._broken and not always:
            return
        try:
            with home(self._info.folder):
                call_with_timeout(seconds, action)
        except Exception as error:
            if not self._broken:
                log.warning("W&B failed (%s); the run continues without it, journal.jsonl is complete", reason(error))
            self._broken = True
