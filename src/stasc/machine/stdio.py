"""Standard output and error that outlive their readers: a run's record is its folder, so it need not end with `head`.

What is written after the reader has gone is dropped, and the command ends with the status that it would have had.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

_GONE = {
    *(errno.EPIPE, errno.ECONNRESET, errno.EIO),  # of a pipe, a socket, a terminal
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # of a file that output goes to
}


class _Outliving(io.FileIO):
    """A file whose writes go nowhere once nobody reads them."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for child processes too
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """Keeps this process running when the reader of its output is gone, or never was there."""
    for number in range(3):  # else the next file that is opened gets the number, and a library's messages
        with suppress(OSError):
            _open(number)
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _open(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)


def _outliving(file: Any) -> Any:
    """A standard file whose reader may go; the same if it is another's, such as a test's."""
    raw = getattr(getattr(file, "buffer", None), "raw", getattr(file, "buffer", None))  # unbuffered, it has none
    if not isinstance(raw, io.FileIO) or isinstance(raw, _Outliving) or raw.fileno() not in (1, 2):
        return file
    with suppress(OSError):
        file.flush()
    raw = _Outliving(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if file.write_through else io.BufferedWriter(raw),  # as Python itself does it
        encoding=file.encoding,
        errors=file.errors,
        line_buffering=file.line_buffering,
        write_through=file.write_through,
    )
