"""Paths that settings give: `~` is the user's home folder, and a relative path begins where the command was started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

VARIABLES = {"store.dir": "STASC_STORE", "model.cache_dir": "STASC_CACHE"}  # what their defaults ask the environment

_started: list[Path] = []  # the working folder; a job with hydra.job.chdir=true has left it


def begin() -> None:
    """Remembers the working folder. Raises: ValueError if it was deleted."""
    try:
        _started[:] = [Path.cwd()]
    except FileNotFoundError as error:
        raise ValueError("the working folder has been deleted: change to one that is there") from error


def start() -> Path:
    """The folder that the command was started in."""
    return _started[0] if _started else Path.cwd()


def path_of(setting: str, value: str | Path) -> Path:
    """The path that a setting gives, with `~` expanded. Raises: ValueError if there is no such home folder."""
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{setting}={value}: there is no home folder that ~ could stand for: set HOME, or {_settable(setting)} to "
            "a folder without ~"
        ) from error
    return path if Path.cwd() == start() else start() / path


@contextmanager
def naming(setting: str, path: Path) -> Iterator[None]:
    """An error of what is written into a setting's folder names the setting."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{setting}={path}: {error.strerror}; set {_settable(setting)} to a folder of yours"
        ) from error


def _settable(setting: str) -> str:
    return f"{setting} or {VARIABLES[setting]}" if setting in VARIABLES else setting


_PACKAGE = Path(__file__).resolve().parents[1]


CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if folder.is_dir())
