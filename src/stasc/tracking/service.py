"""W&B's library and its service process, kept from delaying or stopping a run."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

from stasc.tracking.redaction import scrub

T = TypeVar("T")

SHUT_DOWN_S = 3
PROBE_S = 2


def call_with_timeout(seconds: float, action: Callable[[], T]) -> T:
    """Calls an action and returns its result. Raises: TimeoutError after `seconds`; the action continues in a thread.

    W&B limits the time of network calls, but not of its own service.
    """
    result: Future[T] = Future()

    def act() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=act, name="W&B", daemon=True).start()
    if not wait([result], seconds).done:
        raise TimeoutError(f"no answer in {seconds:g} s")
    return result.result()


def service() -> Popen[bytes] | None:
    """Returns W&B's service process, if it runs. It has no public name."""
    with suppress(Exception):
        process = sys.modules["wandb"].setup()._connection._proc._process
        return process if isinstance(process, Popen) else None
    return None


def shut_down(process: Popen[bytes] | None = None) -> None:
    """Ends W&B's service, by default the current one: if it hangs, it keeps this process from ending."""
    import wandb

    process = process or service()
    try:
        call_with_timeout(SHUT_DOWN_S, wandb.teardown)
    except Exception:
        if process:
            process.kill()


def answers() -> bool:
    """Whether the W&B server answers at all, within 2 s."""
    import requests  # as W&B itself does, with its proxies and certificates
    import wandb

    try:
        url = wandb.setup().settings.base_url
        call_with_timeout(PROBE_S, lambda: requests.head(url, timeout=PROBE_S))
    except Exception:
        return False
    return True


@dataclass(frozen=True)
class Outage:
    """Remembers that W&B could not be reached, so that one job of a sweep waits for it and not each.

    `file`, in the sweep's folder, also reaches jobs in other processes; None: nothing is remembered.
    """

    file: Path | None

    def begins(self) -> None:
        """Records that W&B is unreachable."""
        with suppress(OSError):
            if self.file:
                self.file.touch()

    def lasts(self) -> bool:
        """Whether an earlier job found W&B unreachable and it still is. Removes the record otherwise."""
        if not self.file or not self.file.exists():
            return False
        if not answers():
            return True
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
        return False


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """Makes W&B keep its caches in the run's folder: the home folder may be full or read-only.

    Folders that the user has set stay.
    """
    ours = {name: str(path) for name, path in _caches(folder).items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def caches(folder: Path) -> list[Path]:
    """Returns the caches that W&B has in a run's folder."""
    return [path for name, path in _caches(folder).items() if name not in os.environ]


def _caches(folder: Path) -> dict[str, Path]:
    return {"WANDB_CACHE_DIR": folder / "wandb" / "cache", "WANDB_DATA_DIR": folder / "wandb" / "data"}


def reason(error: Exception) -> str:
    """Returns an error in one line, without secrets."""
    text = scrub(str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
