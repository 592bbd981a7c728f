"""Reports fallbacks, slower ways to compute the same: one warning and one journal event for each kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

log = logging.getLogger(__name__)


@dataclass
class _Reported:
    """The kinds of fallback that a run has reported, and the function that records them."""

    record: Callable[[str, str], None] = lambda what, why: None
    kinds: set[str] = field(default_factory=set)


_reported: ContextVar[_Reported] = ContextVar("_reported")
_outside = _Reported()  # for fallbacks outside a run


@contextmanager
def recording(record: Callable[[str, str], None]) -> Iterator[None]:
    """Passes each fallback in this context to `record(what, why)` too, once for each kind."""
    token = _reported.set(_Reported(record))
    try:
        yield
    finally:
        _reported.reset(token)


def report(what: str, why: str) -> None:
    """Reports a fallback, such as `what` = "no packing", and the reason."""
    reported = _reported.get(_outside)
    if what not in reported.kinds:
        reported.kinds.add(what)
        log.warning("%s: %s", what, why)
        reported.record(what, why)
