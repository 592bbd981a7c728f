"""Paths in settings: `~` is the home folder, and relative paths start where the command was started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(folder for folder in (_PACKAGE / "conf", _PACKAGE.parents[1] / "conf") if folder.is_dir())
VARIABLES = {"store.dir": "STASC_STORE", "model.cache_dir": "STASC_CACHE"}  # environment variables of the defaults

_started: list[Path] = []  # the working folder at the start; hydra.job.chdir=true leaves it


def begin() -> None:
    """Remembers the working folder. Raises: ValueError if it was deleted."""
    try:
        _started[:] = [Path.cwd()]
    except FileNotFoundError as error:
        raise ValueError("the working folder has been deleted: change to one that exists") from error


def start() -> Path:
    """Returns the folder that the command was started in."""
    return _started[0] if _started else Path.cwd()


def path_of(setting: str, value: str | Path) -> Path:
    """Returns the path that a setting names, with `~` expanded. Raises: ValueError if there is no home folder."""
    try:
        path = Path(value).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{setting}={value}: ~ cannot be expanded, as no home folder is known: set HOME, or "
            f"{_settable(setting)} to a folder without ~"
        ) from error
    return path if Path.cwd() == start() else start() / path


@contextmanager
def naming_setting(setting: str, path: Path) -> Iterator[None]:
    """Adds the setting to an OSError raised while writing into its folder."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno, f"{setting}={path}: {error.strerror}; set {_settable(setting)} to a folder of yours"
        ) from error


def _settable(setting: str) -> str:
    return f"{setting} or {VARIABLES[setting]}" if setting in VARIABLES else setting
