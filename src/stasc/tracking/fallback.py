"""Reports when a run cannot compute as it does by default: one warning, and one event in the run's journal."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class _Reported:
    """The kinds of fall-back that a run has reported, and the function that records them."""

    record: Callable[[str, str], None] = lambda what, why: None
    kinds: set[str] = field(default_factory=set)


_reported: ContextVar[_Reported] = ContextVar("_reported")
_outside = _Reported()  # any run


@contextmanager
def recording(record: Callable[[str, str], None]) -> Iterator[None]:
    """Passes each fall-back within to `record` as well: what is lost, and why. Each kind is reported once."""
    token = _reported.set(_Reported(record))
    try:
        yield
    finally:
        _reported.reset(token)


def report(what: str, why: str) -> None:
    """Reports that `what`, such as "no packing", because of `why`."""
    reported = _reported.get(_outside)
    if what not in reported.kinds:
        reported.kinds.add(what)
        log.warning("%s: %s", what, why)
        reported.record(what, why)
