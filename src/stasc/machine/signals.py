"""Ends a run in order and in time after SIGTERM or Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 28.0  # from the first signal to the end of the process

_received: list[Stopped] = []


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; `status` is the matching exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def install() -> None:
    """Makes the first SIGINT or SIGTERM raise `Stopped` in the main thread.

    A second signal, or `GRACE_S` seconds, kill the process, even while the main thread runs native code or waits for
    other threads. A signal that is ignored already, as under nohup, stays ignored.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(receiver,), name="signals", daemon=True).start()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)  # the end of a child must not end this process


def check() -> None:
    """Raises `Stopped` if a signal has arrived: other code may have swallowed or replaced the first exception."""
    if _received:
        raise _received[0]


def _stop(number: int, frame: FrameType | None) -> None:
    _restore()
    _received.append(Stopped(number))
    raise _received[0]


def _restore() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


def _forget() -> None:
    _restore()
    signal.set_wakeup_fd(-1)


def _watch(receiver: socket.socket) -> None:
    """Waits for two signals, which Python writes to this socket as bytes whatever the main thread does."""
    number = _next(receiver)
    receiver.settimeout(GRACE_S)
    with suppress(TimeoutError):
        number = _next(receiver)
    os._exit(128 + number)


def _next(receiver: socket.socket) -> int:
    while (number := receiver.recv(1)[0]) not in SIGNALS:
        pass
    return number
