"""Keeps a run alive when nobody reads its output any more, as after `| head`: its record is its folder.

Later output is dropped, and the exit status stays the same.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any

_GONE = {
    *(errno.EPIPE, errno.ECONNRESET, errno.EIO),  # raised by a pipe, a socket, a terminal
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # raised by a file
}


class _Outliving(io.FileIO):
    """A file that drops writes once they fail."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # child processes inherit it
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """Keeps this process running if its output is closed, from the start or later."""
    for number in range(3):  # the next opened file would get a closed number, and with it the output of libraries
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(file: Any) -> Any:
    """Returns a stream that drops failed writes; the stream itself if it was replaced, as tests do."""
    raw = getattr(getattr(file, "buffer", None), "raw", getattr(file, "buffer", None))  # `raw` unless unbuffered
    if not isinstance(raw, io.FileIO) or isinstance(raw, _Outliving) or raw.fileno() not in (1, 2):
        return file
    with suppress(OSError):
        file.flush()
    raw = _Outliving(raw.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if file.write_through else io.BufferedWriter(raw),  # as Python opens it
        encoding=file.encoding,
        errors=file.errors,
        line_buffering=file.line_buffering,
        write_through=file.write_through,
    )
