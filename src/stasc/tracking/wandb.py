"""The option tracking=wandb: starts a run in Weights & Biases, online or in local files, without need of an account."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stasc.settings.check import expect
from stasc.tracking import metrics
from stasc.tracking.earlier import EarlierStarts, earlier_starts
from stasc.tracking.mirror import Mirror
from stasc.tracking.service import Outage, call_with_timeout, home, reason, service
from stasc.tracking.tracker import Nothing, RunInfo, Tracker

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__package__)

START_S = 90  # time limit of the start: online, then offline
UPLOAD_S = 20  # at the end of a run; the rest stays on disk for `wandb sync`
TAG_CHARACTERS = 64

MODES = ("auto", "online", "offline")
OUTAGE = ".wandb-unreachable"  # file in a sweep's folder


@dataclass(frozen=True)
class Wandb:
    """The option tracking=wandb: Weights & Biases, online or in local files."""

    project: str
    entity: str | None
    group: str | None  # None: the sweep's name; name and job_type: the run's own
    name: str | None
    job_type: str | None
    mode: str
    tags: list[str]
    table_rows: int

    def __post_init__(self) -> None:
        expect("tracking.mode", self.mode, self.mode in MODES, f"one of {', '.join(MODES)}; or choose tracking=off")
        check_project("tracking.project", self.project)
        for tag in self.tags:
            if not 0 < len(tag) <= TAG_CHARACTERS:
                raise ValueError(f"tracking.tags: {tag!r} has {len(tag)} characters, expected 1 to {TAG_CHARACTERS}")
        expect("tracking.table_rows", self.table_rows, self.table_rows >= 0, "0 (no tables) or more")

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
            with home(info.folder):
                return call_with_timeout(START_S, lambda: self._start(info, run_id, upload_s))
        except Exception as error:
            log.warning("W&B did not start (%s); the run continues without it", reason(error))
            if process := service():
                process.kill()  # if it hangs, it would keep this process from ending
            return Nothing()

    def _start(self, info: RunInfo, run_id: str | None, upload_s: float) -> Tracker:
        import wandb

        # Global settings, as W&B prints some messages before it reads those of a run.
        given: dict[str, Any] = {} if self.mode == "auto" else {"mode": self.mode}
        silent = wandb.Settings(silent=True, **given)
        mode = wandb.setup(silent).settings.mode  # auto: by WANDB_MODE or `wandb offline`, else online
        if mode == "disabled":
            log.info("W&B is off, as WANDB_MODE or W&B's settings say")
            return Nothing()

        outage = Outage(info.folder.parent / OUTAGE if info.group and run_id is None else None)
        earlier = earlier_starts(info.folder, run_id)
        known = run_id or earlier.id
        wandb_id = known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)  # the same online and then offline
        init = partial(self._init, info, wandb_id, known is not None, upload_s)
        run = None
        if mode == "online" and outage.lasts():
            log.info("W&B still can't be reached; continuing offline")
        elif mode == "online":
            try:
                if wandb.login(prompt=False, verify=False):  # takes the stored key and asks nobody
                    run = init("online")
                elif self.mode == "online":
                    log.warning("W&B is not logged in: run `wandb login`, or set WANDB_API_KEY; continuing offline")
            except Exception as error:
                log.warning("W&B can't be reached (%s); continuing offline", reason(error))
                outage.begins()
                wandb.teardown()  # else it keeps the run's id
                wandb.setup(silent)
        if run is not None:
            log.info("W&B run: %s", run.url)
            first_step = run.starting_step  # a row with a lower one is on the server
        else:
            run = init("offline")
            first_step = earlier.next_step()
            earlier.mark_superseded()
            _say_how_to_upload(Path(run.dir).parent, earlier)
        repair = None if run_id else f"python -m stasc.tracking sync {shlex.quote(str(info.folder))} --id {wandb_id}"
        return Mirror(run, info, earlier, first_step, self.table_rows, upload_s, outage, repair)

    def _init(
        self, info: RunInfo, run_id: str, resumed: bool, upload_s: float, mode: Literal["online", "offline"]
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
            # So that the file of a killed run holds what the server has, and `wandb leet` shows rows at once.
            x_transaction_log_flush_interval=0.1,
        )
        tags = self.tags or [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            dir=info.folder,
            id=run_id,
            resume="allow" if resumed else None,
            name=info.name,
            group=self.group or info.group,
            job_type=self.job_type or info.variant,
            tags=[*dict.fromkeys([*tags, *(tag[:TAG_CHARACTERS] for tag in info.tags)])],
            config=metrics.settings(info),
            mode=mode,
            reinit="create_new",
            settings=settings,
        )


def _say_how_to_upload(folder: Path, earlier: EarlierStarts) -> None:
    """Logs the commands that view and upload an offline run. Earlier starts are uploaded first."""
    uploaded = shlex.quote(str(folder.parent if earlier.files else folder))
    online = "--include-online " if earlier.online else ""  # rows that an online start could not send
    command = f"wandb sync {online}{uploaded}"
    log.info("W&B offline: look with `wandb leet %s`, upload with `%s`", shlex.quote(str(folder)), command)


def check_project(setting: str, name: str) -> str:
    """Returns the name of a W&B project. Raises: ValueError naming the setting if W&B would refuse it."""
    if not 0 < len(name) <= 128 or set(name) & set("/\\#?%:"):
        raise ValueError(f"{setting}={name}: expected 1 to 128 characters, none of / \\ # ? % :")
    return name
