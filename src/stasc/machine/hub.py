"""Shortens the log of the Hugging Face hub's client."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def log_retries_once(what: str) -> Iterator[None]:
    """Replaces the client's two log lines per retry by a single line that begins with `what`."""
    logged = False

    def log_once(record: logging.LogRecord) -> bool:
        nonlocal logged
        if not logged and record.levelno >= logging.WARNING:
            logged = True
            log.warning("%s: %s; trying again for up to half a minute", what, record.getMessage().rstrip("."))
        return record.levelno < logging.WARNING

    client = logging.getLogger("huggingface_hub.utils._http")
    client.addFilter(log_once)
    try:
        yield
    finally:
        client.removeFilter(log_once)
