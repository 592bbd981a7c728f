"""Weights & Biases mirrors a run. Nothing that happens to it can stop or change the run."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from stasc.records import Pair
from stasc.tracking.redaction import scrub
from stasc.tracking.tracker import Nothing, RunInfo, Tracker

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__package__)

T = TypeVar("T")

START_S = 90  # online, then offline
LOG_S = 20
UPLOAD_S = 20  # of a run's end: what is left then stays on disk, where `wandb sync` finds it
SHUT_DOWN_S = 3

MODES = ("auto", "online", "offline")


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases, online or in local files."""

    project: str
    entity: str | None
    group: str | None  # null: the run's own; so also below
    name: str | None
    job_type: str | None
    mode: str
    tags: list[str]
    sample_pairs: int

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tracking.mode={self.mode}: expected one of {', '.join(MODES)}; or choose tracking=off")
        check_project("tracking.project", self.project)
        for tag in self.tags:
            if not 0 < len(tag) <= 64:
                raise ValueError(f"tracking.tags: {tag!r} has {len(tag)} characters, expected 1 to 64")
        if self.sample_pairs < 0:
            raise ValueError(f"tracking.sample_pairs={self.sample_pairs}: expected 0 (no table) or more")

    def start(self, info: RunInfo, run_id: str | None = None, upload_s: float = UPLOAD_S) -> Tracker:
        """A tracker for one run, which goes on in the W&B run `run_id`, if that is given, or in that of the folder.

        The end of the run waits `upload_s` seconds for its upload.
        If W&B can't be started at all, this is one warning, and the tracker does nothing.
        """
        if self.mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
            log.info("W&B is off, as WANDB_DISABLED says")  # W&B itself has forgotten the variable
            return Nothing()
        try:
            with _home(info.folder):
                return within(START_S, lambda: self._start(info, run_id, upload_s))
        except Exception as error:
            log.warning("W&B did not start (%s); the run goes on without it", reason(error))
            _kill(_service())  # one that hangs would hold this process at its end
            return Nothing()

    def _start(self, info: RunInfo, run_id: str | None, upload_s: float) -> Tracker:
        import wandb

        previous = None if run_id else _previous_id(info.folder)
        run_id = run_id or previous
        # Global, as W&B prints some messages before it looks at a run's own settings.
        given: dict[str, Any] = {} if self.mode == "auto" else {"mode": self.mode}
        silent = wandb.Settings(silent=True, **given)
        mode = wandb.setup(silent).settings.mode  # auto: what WANDB_MODE or `wandb offline` says, else online
        if mode == "disabled":
            log.info("W&B is off, as WANDB_MODE or W&B's settings say")
            return Nothing()

        if mode == "online":
            try:
                if wandb.login(prompt=False, verify=False):  # reads the key from where W&B keeps it, and asks nobody
                    run = self._init(info, "online", run_id, upload_s)
                    log.info("W&B run: %s", run.url)
                    return _Mirror(run, info.folder, self.sample_pairs, upload_s)
                if self.mode == "online":
                    log.warning("W&B is not logged in: run `wandb login`, or set WANDB_API_KEY; going on offline")
            except Exception as error:
                log.warning("W&B can't be reached (%s); going on offline", reason(error))
                wandb.teardown()  # it would hold the run's id
                wandb.setup(silent)

        run = self._init(info, "offline", run_id, upload_s)
        folder = Path(run.dir).parent
        every = folder.parent if previous else folder  # what earlier starts left is uploaded too, and first
        log.info("W&B offline: look with `wandb leet %s`, upload with `wandb sync %s`", *map(_quoted, (folder, every)))
        return _Mirror(run, info.folder, self.sample_pairs, upload_s)

    def _init(
        self, info: RunInfo, mode: Literal["online", "offline"], run_id: str | None, upload_s: float
    ) -> wandb.Run:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=30,
            finish_timeout=upload_s,
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
            id=run_id,
            resume="allow" if run_id else None,
            name=info.name,
            group=info.group,
            job_type=self.job_type or info.variant,
            tags=self.tags or None,  # which WANDB_TAGS then gives
            config={**info.config, "variant": info.variant, "seed": info.seed, **_choices(info)},
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run


def check_project(setting: str, name: str) -> str:
    """The name of a W&B project. Raises: ValueError naming the setting, if W&B would not take it."""
    if not 0 < len(name) <= 128 or set(name) & set("/\\#?%:"):
        raise ValueError(f"{setting}={name}: expected 1 to 128 characters, none of / \\ # ? % :")
    return name


class _Mirror:
    """A W&B run. Its first failure is one warning; after it the mirror gets nothing but its end."""

    def __init__(self, run: wandb.Run, folder: Path, sample_pairs: int, upload_s: float) -> None:
        self._run = run
        self._folder = folder
        self._sample_pairs = sample_pairs
        self._upload_s = upload_s
        self._service = _service()
        self._broken = False

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> bool:
        return not self._broken and self._try(LOG_S, lambda: self._log(entry, pairs, kept))

    def finish(self, status: str, failed: bool, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Takes `upload_s` and 6 s at most, whatever W&B does."""
        summary = {"status": status, **_final(entries)}
        self._try(self._upload_s + SHUT_DOWN_S, lambda: self._end(1 if failed else 0, summary))
        # W&B's service may have died, and the next run of this process needs one; or it hangs, and would hold our end.
        if self._broken:
            shut_down(self._service)
        return not self._broken

    def _end(self, code: int, summary: dict[str, Any]) -> None:
        try:
            if not self._broken:
                self._run.summary.update(summary)
        finally:
            self._run.finish(exit_code=code)

    def _log(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> None:
        import wandb

        n = entry["n"]
        row: dict[str, Any] = {"iteration": n}
        row.update(_numbers({name: part for name, part in entry.items() if name != "n"}))
        if rows := _pair_rows(n, pairs, kept, self._sample_pairs):
            row["pairs"] = wandb.Table(columns=list(PAIR_COLUMNS), data=rows)
        # W&B drops a step that it has: a run killed before it could note that this arrived sends it once more.
        self._run.log(row, step=n, commit=True)

    def _try(self, seconds: float, action: Callable[[], object]) -> bool:
        try:
            with _home(self._folder):
                within(seconds, action)
            return True
        except Exception as error:
            if not self._broken:
                log.warning("W&B failed (%s); the run goes on without it, journal.jsonl has it all", reason(error))
            self._broken = True
            return False


def within(seconds: float, action: Callable[[], T]) -> T:
    """What the action returns. Raises: TimeoutError after so many seconds; the action is then left to itself.

    W&B limits how long the network may take, but not how long its own service may.
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


def _service() -> Popen[bytes] | None:
    """W&B's service process, if it has one. No public name leads to it."""
    with suppress(Exception):
        process = sys.modules["wandb"].setup()._connection._proc._process
        return process if isinstance(process, Popen) else None
    return None


def shut_down(service: Popen[bytes] | None = None) -> None:
    """Ends W&B's service, this one or the one at hand: it may hang, and would then hold the end of this process."""
    import wandb

    service = service or _service()
    try:
        within(SHUT_DOWN_S, wandb.teardown)
    except Exception:
        _kill(service)


def _kill(process: Popen[bytes] | None) -> None:
    if process:
        process.kill()


DESIGN = ("init", "filter", "start", "target", "finetune")


def _choices(info: RunInfo) -> dict[str, str]:
    """The options of config groups under names without dots, as what W&B groups and filters by.

    A baseline has no design choices, so that it does not count as a variant that happens to share one.
    """
    baseline = str(info.config.get("baseline") or "none")
    told = {name: option for name, option in info.choices.items() if baseline == "none" or name not in DESIGN}
    return {f"choice/{name}": option for name, option in {"baseline": baseline, **told}.items()}


PAIR_COLUMNS = ("n", "question", "y1", "y2", "r1", "r2", "kept")


def _pair_rows(n: int, pairs: Sequence[Pair], kept: Sequence[Pair], count: int) -> list[Iterable[object]]:
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


def _final(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the last iteration comes to, as the report names it, and what all iterations took.

    `gain` is the correction accuracy less the initial accuracy; `over_initial` and `over_correction` are the correction
    accuracy less those of M_0.
    """
    if not entries:
        return {}
    first, last = entries[0]["test"], entries[-1]["test"]
    trained = [{**(entry["train"] or {}), **(entry["finetune"] or {})} for entry in entries]
    return {
        "final/n": entries[-1]["n"],
        "final/init_acc": last["init_acc"],
        "final/corr_acc": last["corr_acc"],
        "final/gain": last["corr_acc"] - last["init_acc"],
        "final/over_initial": last["corr_acc"] - first["init_acc"],
        "final/over_correction": last["corr_acc"] - first["corr_acc"],
        **{f"final/{name}": last[name] for name in ("vote_acc", "vote_all_acc", "pass_acc") if name in last},
        **{f"total/{name}": sum(part.get(name, 0) for part in trained) for name in ("kept", "steps", "tokens")},
        "total/seconds": sum(entry["seconds"]["total"] for entry in entries),
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


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def reason(error: Exception) -> str:
    """The error in one line, without secrets."""
    text = scrub(str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
