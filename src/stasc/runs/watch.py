"""Records the cache hits and misses of a run in its journal and, on request, on the terminal."""

from __future__ import annotations

import json
import logging
from typing import Any

from stasc.runs.folder import RunFolder
from stasc.store.artifacts import Artifact, Store
from stasc.store.cached import ERRORS
from stasc.store.keys import differences
from stasc.units import counted

log = logging.getLogger(__name__)


class Watch:
    """Callback of the store for every stage of a run. With `explain` it logs a line for each."""

    def __init__(self, store: Store, folder: RunFolder, explain: bool) -> None:
        self._store, self._folder, self._explain = store, folder, explain
        self._seconds: dict[str, float] = {}
        self._count = {True: 0, False: 0}
        self._reused = 0  # in the current iteration
        self._warned = False
        self._errors: dict[str, tuple[Artifact, dict[str, Any]]] = {}

    def __call__(self, artifact: Artifact, hit: bool) -> None:
        split, n = artifact.made_of.get("split", "train"), len(self._folder.summary["iterations"])
        self._folder.stage(
            artifact.kind, artifact.key, hit, n=n, split=split, seconds=artifact.seconds, content=artifact.content
        )
        if artifact.kind == "model":  # counts with its fine-tuning
            return
        if self._explain:
            log.info(self._line(artifact, hit, split, n))
        if ERRORS in artifact.files:
            self._errors[artifact.key] = artifact, json.loads(artifact.read(ERRORS))
        self._count[hit] += 1
        self._reused += hit
        name = artifact.kind if split == "train" else "evaluation"
        self._seconds[name] = self._seconds.get(name, 0.0) + artifact.seconds
        ours = self._store.machine
        if hit and not self._warned and (other := next((one for one in artifact.machines if one != ours), None)):
            self._warned = True
            apart = [f"{key} {other.get(key)} there, {ours[key]} here" for key in ours if other.get(key) != ours[key]]
            log.warning("another machine computed reused stages, so bits may differ (%s)", "; ".join(apart))

    def pop_seconds(self) -> dict[str, float]:
        """Returns the computing time of each kind of stage since the last call; that of cache hits as of their miss."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def pop_reused(self) -> int:
        """Returns the number of cache hits since the last call."""
        reused, self._reused = self._reused, 0
        return reused

    def report(self) -> None:
        """Logs how many stages were cache hits, and the answers that count 0 because the reward failed."""
        if hits := self._count[True]:
            computed = counted(self._count[False], "stage")
            log.info("%s computed, %d reused from %s", computed, hits, self._store.root)
        if self._errors:
            found = list(self._errors.values())
            answers, first = sum(errors["answers"] for _, errors in found), found[0][1]["first"]
            folders = " ".join([str(self._folder.path), *(str(artifact.folder) for artifact, _ in found)])
            raised = "reward_errors=zero: the reward raised an error for %d answers, first %s"
            log.warning(f"{raised}; to score them again, remove %s", answers, first, folders)

    def _line(self, artifact: Artifact, hit: bool, split: str, n: int) -> str:
        line = f"{'reused' if hit else 'computed':<9} n={n} {split:<5} {artifact.kind:<10} {artifact.key[:12]}"
        if hit:
            return line
        others = (other.made_of for other in self._store.every(artifact.kind) if other.key != artifact.key)
        apart = differences(artifact.made_of, others)
        return f"{line}  {'the first of its kind' if apart is None else '; '.join(apart)}"
