"""Reports when a run cannot compute as it does by default: one warning, and one event in the run's journal.

Any code may report, without knowing of the run or its folder: the journal is found through a context variable.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class _Reported:
    """The kinds of fallback that a run has reported, its lowest batch size, and the function that records them."""

    record: Callable[..., object] = lambda event, **facts: None
    kinds: set[str] = field(default_factory=set)
    rows: float = math.inf


_reported: ContextVar[_Reported] = ContextVar("_reported")
_outside = _Reported()  # any run


@contextmanager
def recording(record: Callable[..., object]) -> Iterator[None]:
    """Passes the reports of the `with` block to `record(event, **facts)`, such as `Journal.write`."""
    token = _reported.set(_Reported(record))
    try:
        yield
    finally:
        _reported.reset(token)


def report(what: str, why: str) -> None:
    """Reports that `what`, such as "no packing", because of `why`. Each kind is reported once."""
    reported = _reported.get(_outside)
    if what not in reported.kinds:
        reported.kinds.add(what)
        log.warning("%s: %s", what, why)
        reported.record("fallback", what=what, why=why)


def memory_short(rows: int) -> None:
    """Reports that memory suffices for `rows` answers at once, if that is fewer than ever before in the run."""
    reported = _reported.get(_outside)
    if rows < reported.rows:
        reported.rows = rows
        log.warning("low memory: sampling continues with %d answers at once", rows)
        reported.record("memory_short", rows=rows)
