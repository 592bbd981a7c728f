"""What is fetched from the Hugging Face hub: its client's retries, in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def retries_told_once(what: str) -> Iterator[None]:
    """Puts one line, which begins with `what`, in place of the two for each of the client's retries."""
    told = False

    def tell(record: logging.LogRecord) -> bool:
        nonlocal told
        if not told and record.levelno >= logging.WARNING:
            told = True
            log.warning("%s: %s; trying again for up to half a minute", what, record.getMessage().rstrip("."))
        return record.levelno < logging.WARNING

    client = logging.getLogger("huggingface_hub.utils._http")
    client.addFilter(tell)
    try:
        yield
    finally:
        client.removeFilter(tell)
