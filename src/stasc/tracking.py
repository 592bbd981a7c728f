"""Where a run's events go: the journal, which is the record of the run, and Weights & Biases, which mirrors it.

A run needs neither network nor account, and nothing that happens to W&B while it runs can stop or change it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shlex
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from stasc import fsx
from stasc.records import Pair

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

T = TypeVar("T")

CRC = b', "crc32": "'  # what parts a line from its checksum, which is always the last field


class Journal:
    """Append-only record of a run: one event a line, as JSON with a checksum, on disk when `write` returns.

    Opening an existing journal goes on with it. A last line that was cut short by a crash is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.open("ab+", buffering=0)
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        _sync_folder(path.parent)

    def write(self, event: str, **fields: object) -> None:
        """Appends `{"time": ..., "event": event, **fields, "crc32": ...}`; the time is UTC.

        A float that is not finite is written as null under its name: JSON has no NaN, and a loss that became NaN must
        not keep its event out of the record.

        Raises: ValueError for a field called time or crc32; TypeError, naming the field, for what is no JSON value.
        """
        for name in fields.keys() & {"time", "crc32"}:
            raise ValueError(f"journal event {event!r}: the field name {name!r} is the journal's own; use another")
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        plain = {name: _plain(value, f"journal event {event!r}, {name}") for name, value in fields.items()}
        body = json.dumps({"time": time, "event": event, **plain}).encode()
        line, end = body[:-1] + CRC + b'%08x"}\n' % zlib.crc32(body), self._file.seek(0, os.SEEK_END)
        try:
            with fsx.naming(self._path):
                while line:
                    line = line[self._file.write(line) :]
                os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(end)  # the next event must not follow half of this one
            raise

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the events of a journal in order, each checked, without their checksums.

    A last line without its end is what a crash leaves: it was never acknowledged, and is left out.

    Raises: ValueError at the first line that does not match its checksum, naming the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            body, _, crc = line.rpartition(CRC)
            body += b"}"
            if crc != b'%08x"}\n' % zlib.crc32(body):
                raise ValueError(
                    f"{path}, line {number}: does not match its checksum, so it was changed after it was written; "
                    f"the {number - 1} events before it are whole"
                )
            yield json.loads(body)


def _plain(value: object, name: str) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{name}: {type(value).__name__} is no JSON value; convert it to text, numbers, lists or dicts")


def _sync_folder(folder: Path) -> None:
    """Makes a new file's name durable, not only its content. Windows can't, and needn't."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


HIDDEN = "***"
SECRET_NAME = re.compile(
    r"(?:^|_)(?:keys?|[a-z]*(?:token|secrets?|passwords?|passwd|passphrase|credentials?"
    r"|apikey|accesskey|privatekey|secretkey))(?:_|$)"  # max_new_tokens and monkey are none
)
WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # apiKey, HFToken


def redact(config: Mapping[str, object]) -> dict[str, object]:
    """The config with `***` for its secrets, to any depth.

    Hidden are the values of keys that are named like a secret (a word of the name is token, key, secret, password or
    credential; null and booleans stay), and, in every text, the values of environment variables that are named so.
    """
    hidden = _secret_values()
    return {key: _redacted(key, value, hidden) for key, value in config.items()}


def _redacted(name: str, value: object, hidden: Sequence[str]) -> object:
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        return _scrub(value, hidden)
    if isinstance(value, Mapping):
        return {key: _redacted(str(key), item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", item, hidden) for item in value]
    return value


def _is_secret(name: str) -> bool:
    words = re.sub("[^a-z]+", "_", WORD_START.sub("_", name).lower())
    return SECRET_NAME.search(words) is not None


def _secret_values() -> list[str]:
    """Values of environment variables named like a secret, the longest first: one may contain another."""
    values = {value for name, value in os.environ.items() if len(value) >= 8 and _is_secret(name)}
    return sorted(values, key=len, reverse=True)


def _scrub(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        text = text.replace(value, HIDDEN)
    return text


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of a run: `config` is plain data, already redacted; `folder` is the run's own."""

    name: str
    group: str
    variant: str
    seed: int
    folder: Path
    config: dict[str, object]


class Tracker(Protocol):
    """Follows one run. `summary` is an iteration's entry of summary.json."""

    def iteration(
        self, summary: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair], sent: bool = False
    ) -> bool: ...

    def finish(self, status: str, failed: bool) -> None: ...


@dataclass(frozen=True)
class Off:
    """No tracking."""

    def start(self, info: RunInfo) -> Tracker:
        return _Nothing()


MODES = ("auto", "online", "offline")


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases, online or in local files."""

    project: str
    entity: str | None
    mode: str
    tags: list[str]
    sample_pairs: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tracking.mode={self.mode}: expected one of {', '.join(MODES)}; or choose tracking=off")
        if not 0 < len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise ValueError(f"tracking.project={self.project}: expected 1 to 128 characters, none of / \\ # ? % :")
        for tag in self.tags:
            if not 0 < len(tag) <= 64:
                raise ValueError(f"tracking.tags: {tag!r} has {len(tag)} characters, expected 1 to 64")
        if self.sample_pairs < 0:
            raise ValueError(f"tracking.sample_pairs={self.sample_pairs}: expected 0 (no table) or more")

    def start(self, info: RunInfo) -> Tracker:
        """A tracker for one run. If W&B can't be started at all, this is one warning, and the tracker does nothing."""
        try:
            with _home(info.folder):
                return self._start(info)
        except Exception as error:
            log.warning("W&B did not start (%s); the run goes on without it", _reason(error))
            return _Nothing()

    def _start(self, info: RunInfo) -> Tracker:
        import wandb

        previous = _previous_id(info.folder)
        # Global, as W&B prints some messages before it looks at a run's own settings.
        given: dict[str, Any] = {} if self.mode == "auto" else {"mode": self.mode}
        silent = wandb.Settings(silent=True, **given)
        mode = wandb.setup(silent).settings.mode  # auto: what WANDB_MODE or `wandb offline` says, else online
        if mode == "disabled":
            return _Nothing()

        if mode == "online":
            try:
                if wandb.login(prompt=False, verify=False):  # reads the key from where W&B keeps it, and asks nobody
                    run = self._init(info, "online", previous)
                    log.info("W&B run: %s", run.url)
                    return _Mirror(run, info.folder, self.sample_pairs)
                if self.mode == "online":
                    log.warning("W&B is not logged in: run `wandb login`, or set WANDB_API_KEY; going on offline")
            except Exception as error:
                log.warning("W&B can't be reached (%s); going on offline", _reason(error))
                wandb.teardown()  # it would hold the run's id
                wandb.setup(silent)

        run = self._init(info, "offline", previous)
        folder = shlex.quote(str(Path(run.dir).parent))
        log.info("W&B offline: look with `wandb leet %s`, upload with `wandb sync %s`", folder, folder)
        return _Mirror(run, info.folder, self.sample_pairs)

    def _init(self, info: RunInfo, mode: Literal["online", "offline"], previous: str | None) -> wandb.Run:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=30,
            finish_timeout=60,
            finish_timeout_raises=True,
            allow_val_change=True,
            disable_code=True,
            save_code=False,
            disable_git=True,
            label_disable=True,
            symlink=False,
            use_dot_wandb=False,
            x_disable_meta=True,  # the command line: it may hold secrets
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,  # seconds; what a killed run keeps, and what `wandb leet` sees of it
        )
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=info.folder,
            id=previous,
            resume="allow" if previous else None,
            name=info.name,
            group=info.group,
            job_type=info.variant,
            tags=self.tags,
            config={**info.config, "variant": info.variant, "seed": info.seed},
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run


class _Nothing:
    def iteration(
        self, summary: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair], sent: bool = False
    ) -> bool:
        return False

    def finish(self, status: str, failed: bool) -> None:
        pass


class _Mirror:
    """A W&B run. Its first failure is one warning; after it the mirror gets nothing but its end."""

    def __init__(self, run: wandb.Run, folder: Path, sample_pairs: int) -> None:
        self._run = run
        self._folder = folder
        self._sample_pairs = sample_pairs
        self._tests: list[Mapping[str, Any]] = []
        self._broken = False

    def iteration(
        self, summary: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair], sent: bool = False
    ) -> bool:
        if not self._broken:
            self._try(lambda: self._log(summary, pairs, kept))
        return not self._broken

    def finish(self, status: str, failed: bool) -> None:
        import wandb

        if not self._broken:
            self._try(lambda: self._run.summary.update({"status": status, **_final(self._tests)}))
        self._try(lambda: self._run.finish(exit_code=1 if failed else 0))
        if self._broken:  # W&B's service may have died: the next run of this process then starts a new one
            self._try(wandb.teardown)

    def _log(self, summary: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> None:
        import wandb

        n = summary["n"]
        row: dict[str, Any] = {"iteration": n}
        row.update(_numbers({name: part for name, part in summary.items() if name != "n"}))
        if rows := _pair_rows(n, pairs, kept, self._sample_pairs):
            row["pairs"] = wandb.Table(columns=list(PAIR_COLUMNS), data=rows)
        self._tests.append(summary["test"])
        # W&B drops a step that it has, so a run that is continued logs every iteration once.
        self._run.log(row, step=n, commit=True)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            with _home(self._folder):
                action()
        except Exception as error:
            if not self._broken:
                log.warning("W&B failed (%s); the run goes on without it, journal.jsonl has it all", _reason(error))
            self._broken = True


PAIR_COLUMNS = ("n", "question", "y1", "y2", "r1", "r2", "kept")


def _pair_rows(n: int, pairs: Sequence[Pair], kept: Sequence[Pair], count: int) -> list[list[object]]:
    """At most `count` rows: kept pairs, then others, each drawn evenly from the whole iteration."""
    chosen = {_key(pair) for pair in kept}
    first = _spread([pair for pair in pairs if _key(pair) in chosen], count)
    then = _spread([pair for pair in pairs if _key(pair) not in chosen], count - len(first))
    return [
        [n, pair.question.text, pair.y1.text, pair.y2.text, pair.r1, pair.r2, _key(pair) in chosen]
        for pair in [*first, *then]
    ]


def _key(pair: Pair) -> tuple[str, int, int, int]:
    return pair.question.id, pair.i, pair.seen, pair.k


def _spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced, in order."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number of nested dicts, under its path: `("test/corr_acc", 0.5)`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def _final(tests: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last iteration's accuracies; `gain` is its correction accuracy less that of M_0."""
    if not tests:
        return {}
    first, last = tests[0], tests[-1]
    return {
        "final/init_acc": last["init_acc"],
        "final/corr_acc": last["corr_acc"],
        "final/gain": last["corr_acc"] - first["corr_acc"],
    }


def _previous_id(folder: Path) -> str | None:
    """The id of the W&B run that an earlier start in this folder began: a continued run goes on in it."""
    logs = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return logs[-1].stem.removeprefix("run-") if logs else None


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Has W&B keep its caches in the run's folder while this lasts: the home folder may be full, or read-only.

    A place that the user set is left alone.
    """
    places = {"WANDB_CACHE_DIR": folder / "wandb" / "cache", "WANDB_DATA_DIR": folder / "wandb" / "data"}
    ours = {name: str(place) for name, place in places.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _reason(error: Exception) -> str:
    """The error in one line, without secrets."""
    text = _scrub(str(error), _secret_values()).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
