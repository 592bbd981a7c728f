"""Mirrors a run in Weights & Biases. No failure of W&B stops or changes the run, which needs no network or account."""

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
from stasc.settings.check import expect
from stasc.tracking.redaction import scrub
from stasc.tracking.tracker import Nothing, RunInfo, Tracker

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__package__)

T = TypeVar("T")

START_S = 90  # time limit of the start: online, then offline
LOG_S = 20
UPLOAD_S = 20  # at the end of a run; the rest stays on disk for `wandb sync`
SHUT_DOWN_S = 3

MODES = ("auto", "online", "offline")
DESIGN = ("init", "filter", "start", "target", "finetune")
PAIR_COLUMNS = ("n", "question", "y1", "y2", "r1", "r2", "kept")


@dataclass(frozen=True)
class Wandb:
    """The option tracking=wandb: Weights & Biases, online or in local files."""

    project: str
    entity: str | None
    group: str | None  # None takes the run's own, as in the next two
    name: str | None
    job_type: str | None
    mode: str
    tags: list[str]
    sample_pairs: int

    def __post_init__(self) -> None:
        expect("tracking.mode", self.mode, self.mode in MODES, f"one of {', '.join(MODES)}; or choose tracking=off")
        check_project("tracking.project", self.project)
        for tag in self.tags:
            if not 0 < len(tag) <= 64:
                raise ValueError(f"tracking.tags: {tag!r} has {len(tag)} characters, expected 1 to 64")
        expect("tracking.sample_pairs", self.sample_pairs, self.sample_pairs >= 0, "0 (no table) or more")

    def start(self, info: RunInfo, run_id: str | None = None, upload_s: float = UPLOAD_S) -> Tracker:
        """Returns the tracker of one run; if W&B does not start, it warns and returns a tracker that does nothing.

        Args:
            run_id: W&B run to continue; None continues that of the folder, if there is one.
            upload_s: how long the end of the run waits for the upload.
        """
        if self.mode == "auto" and os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on"):
            log.info("W&B is off, as WANDB_DISABLED says")  # W&B no longer reads it
            return Nothing()
        try:
            with _home(info.folder):
                return call_with_timeout(START_S, lambda: self._start(info, run_id, upload_s))
        except Exception as error:
            log.warning("W&B did not start (%s); the run continues without it", reason(error))
            if service := _service():
                service.kill()  # if it hangs, it would keep this process from ending
            return Nothing()

    def _start(self, info: RunInfo, run_id: str | None, upload_s: float) -> Tracker:
        import wandb

        previous = None if run_id else _previous_id(info.folder)
        run_id = run_id or previous
        # Global settings, as W&B prints some messages before it reads those of a run.
        given: dict[str, Any] = {} if self.mode == "auto" else {"mode": self.mode}
        silent = wandb.Settings(silent=True, **given)
        mode = wandb.setup(silent).settings.mode  # auto: by WANDB_MODE or `wandb offline`, else online
        if mode == "disabled":
            log.info("W&B is off, as WANDB_MODE or W&B's settings say")
            return Nothing()

        if mode == "online":
            try:
                if wandb.login(prompt=False, verify=False):  # takes the stored key and asks nobody
                    run = self._init(info, "online", run_id, upload_s)
                    log.info("W&B run: %s", run.url)
                    return _Mirror(run, info.folder, self.sample_pairs, upload_s)
                if self.mode == "online":
                    log.warning("W&B is not logged in: run `wandb login`, or set WANDB_API_KEY; continuing offline")
            except Exception as error:
                log.warning("W&B can't be reached (%s); continuing offline", reason(error))
                wandb.teardown()  # else it keeps the run's id
                wandb.setup(silent)

        run = self._init(info, "offline", run_id, upload_s)
        folder = Path(run.dir).parent
        every = folder.parent if previous else folder  # uploads earlier starts of the run too, and first
        quoted = (shlex.quote(str(path)) for path in (folder, every))
        log.info("W&B offline: look with `wandb leet %s`, upload with `wandb sync %s`", *quoted)
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
            x_disable_meta=True,  # metadata holds the command line, which may hold secrets
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1.0,  # so that a killed run keeps its rows, and `wandb leet` shows them
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
            tags=self.tags or None,  # None takes WANDB_TAGS
            config={**info.config, "variant": info.variant, "seed": info.seed, **_choices(info)},
            mode=mode,
            reinit="create_new",
            settings=settings,
        )
        run.define_metric("iteration")
        run.define_metric("*", step_metric="iteration")
        return run


def check_project(setting: str, name: str) -> str:
    """Returns the name of a W&B project. Raises: ValueError naming the setting if W&B would refuse it."""
    if not 0 < len(name) <= 128 or set(name) & set("/\\#?%:"):
        raise ValueError(f"{setting}={name}: expected 1 to 128 characters, none of / \\ # ? % :")
    return name


class _Mirror:
    """A W&B run. Its first failure is logged as one warning; after it the run is only ended."""

    def __init__(self, run: wandb.Run, folder: Path, sample_pairs: int, upload_s: float) -> None:
        self._run, self._folder, self._sample_pairs, self._upload_s = run, folder, sample_pairs, upload_s
        self._service, self._broken = _service(), False

    def iteration(self, entry: Mapping[str, Any], pairs: Sequence[Pair], kept: Sequence[Pair]) -> bool:
        return not self._broken and self._try(LOG_S, lambda: self._log(entry, pairs, kept))

    def finish(self, status: str, failed: bool, entries: Sequence[Mapping[str, Any]]) -> bool:
        """Ends the W&B run within `upload_s` and 6 s."""
        summary = {"status": status, **_final(entries)}
        self._try(self._upload_s + SHUT_DOWN_S, lambda: self._end(1 if failed else 0, summary))
        # The service may have died, but the next run of this process needs one; or it hangs, and would delay our end.
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
        row: dict[str, Any] = {"iteration": n, **dict(_numbers({**entry, "n": None}))}
        if rows := _pair_rows(n, pairs, kept, self._sample_pairs):
            row["pairs"] = wandb.Table(columns=list(PAIR_COLUMNS), data=rows)
        # A run killed before it could record the arrival sends the step again; W&B drops it.
        self._run.log(row, step=n, commit=True)

    def _try(self, seconds: float, action: Callable[[], object]) -> bool:
        try:
            with _home(self._folder):
                call_with_timeout(seconds, action)
            return True
        except Exception as error:
            if not self._broken:
                log.warning("W&B failed (%s); the run continues without it, journal.jsonl is complete", reason(error))
            self._broken = True
            return False


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


def _service() -> Popen[bytes] | None:
    """Returns W&B's service process, if it runs. It has no public name."""
    with suppress(Exception):
        process = sys.modules["wandb"].setup()._connection._proc._process
        return process if isinstance(process, Popen) else None
    return None


def shut_down(service: Popen[bytes] | None = None) -> None:
    """Ends W&B's service, by default the current one: if it hangs, it keeps this process from ending."""
    import wandb

    service = service or _service()
    try:
        call_with_timeout(SHUT_DOWN_S, wandb.teardown)
    except Exception:
        if service:
            service.kill()


def _choices(info: RunInfo) -> dict[str, str]:
    """Returns the options of config groups, under names without dots, so that W&B can group and filter by them.

    A baseline gets no design choices, so that it is not grouped with the variants that share one.
    """
    baseline = str(info.config.get("baseline") or "none")
    chosen = {name: option for name, option in info.choices.items() if baseline == "none" or name not in DESIGN}
    return {f"choice/{name}": option for name, option in {"baseline": baseline, **chosen}.items()}


def _pair_rows(n: int, pairs: Sequence[Pair], kept: Sequence[Pair], count: int) -> list[Iterable[object]]:
    """Returns at most `count` rows: kept pairs, then others, each evenly spaced over the iteration."""
    chosen = {pair.id for pair in kept}
    first = _spread([pair for pair in pairs if pair.id in chosen], count)
    then = _spread([pair for pair in pairs if pair.id not in chosen], count - len(first))
    return [
        [n, pair.question.text, pair.y1.text, pair.y2.text, pair.r1, pair.r2, pair.id in chosen]
        for pair in [*first, *then]
    ]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """Returns at most `count` of the items, evenly spaced, in order."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields every number of nested dicts with its path: `("test/corr_acc", 0.5)`."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def _final(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the results of the last iteration, named as in the report, and totals over all iterations.

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
    """Returns the id of the W&B run that an earlier start in this folder began; a resumed run continues it."""
    logs = sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return logs[-1].stem.removeprefix("run-") if logs else None


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Makes W&B keep its caches in the run's folder: the home folder may be full or read-only.

    Folders that the user has set stay.
    """
    folders = {"WANDB_CACHE_DIR": folder / "wandb" / "cache", "WANDB_DATA_DIR": folder / "wandb" / "data"}
    ours = {name: str(path) for name, path in folders.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def reason(error: Exception) -> str:
    """Returns an error in one line, without secrets."""
    text = scrub(str(error)).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
