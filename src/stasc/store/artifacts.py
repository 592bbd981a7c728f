"""Durable artifacts: the output of each stage, under the key of everything that decides it.

An artifact is an immutable folder, `<kind>/<key>`. Its COMMIT.json holds the sizes and sha256 of its files, and the
digests of the inputs that it was computed from. One rename creates it, under a lock that the kernel frees when its
holder dies. Every read verifies it; a damaged artifact is quarantined and recomputed. If that gives other content, as
on another machine, the artifacts computed from the former content are invalidated. joblib, diskcache and datasets'
cache unpickle what they read or check nothing, and DVC needs a repository, so this store is our own; `filelock` locks.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from stasc.machine import durable
from stasc.machine.paths import naming_setting
from stasc.machine.sealed import Damaged, digest, file_sha256, missing_is_damage, read_sealed, write_sealed

log = logging.getLogger(__name__)

SCHEMA = 2  # schema version of COMMIT.json, of the files beside it, and of leases
COMMIT = "COMMIT.json"
TIMES = "times.json"  # how long parts of a computation took, which its content does not depend on
KEY = re.compile("[0-9a-f]{64}")
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # flock's errors on file systems without locks
KINDS = ("initial", "correction", "filter", "finetune", "model", "evaluation")

T = TypeVar("T")


class InputsChanged(Exception):
    """An input of an artifact has changed since its computation began."""


class OtherVersion(ValueError):
    """An artifact has a schema that this version of stasc cannot read."""


@dataclass(frozen=True)
class Artifact:
    """A committed artifact. `made_of` is the description whose hash is its key, without secrets.

    `inputs` are the digests of its inputs by their names in `made_of`. `machines` computed it in `seconds`; they are
    several if it was resumed on another one.
    """

    kind: str
    key: str
    folder: Path
    files: Mapping[str, Mapping[str, Any]]  # name: size in bytes, sha256
    made_of: Mapping[str, Any]
    inputs: Mapping[str, str]
    machines: Sequence[Mapping[str, Any]]
    seconds: float

    @property
    def content(self) -> str:
        """The digest of its files but those of times."""
        return digest({name: file["sha256"] for name, file in self.files.items() if name != TIMES})

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises: Damaged if it does not match its checksum."""
        with missing_is_damage():
            data = (self.folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.files.get(name, {}).get("sha256"):
            raise Damaged(f"{name} does not match its checksum")
        return data

    def verify(self) -> None:
        """Checks every file. Raises: Damaged if one does not match its checksum."""
        for name, file in self.files.items():
            with missing_is_damage():
                actual = file_sha256(self.folder / name)
            if actual != file["sha256"]:
                raise Damaged(f"{name} does not match its checksum")


@dataclass(frozen=True)
class Store:
    """The artifacts in a folder, which runs and processes may share.

    `watch` is a callback for every stage: its artifact, and whether it was a cache hit.
    """

    root: Path
    machine: Mapping[str, Any]
    watch: Callable[[Artifact, bool], None] = lambda artifact, hit: None

    def derive(
        self,
        kind: str,
        key: str,
        made_of: Mapping[str, Any],
        inputs: Callable[[], Mapping[str, str]],
        compute: Callable[[Path], None],
        read: Callable[[Artifact], T],
    ) -> tuple[Artifact, T]:
        """Returns an artifact and what `read` returns for it. Computes it if it is missing, damaged or of other inputs.

        Args:
            inputs: returns the digests of its inputs.
            compute: fills a folder, which may hold whole files of an interrupted try. If its first step changes an
                input, as when evicted weights are derived again, it raises InputsChanged before it writes any file,
                and is called again.
            read: raises Damaged if a file does not match its checksum.
        """
        found = self._whole(kind, key, inputs(), read)
        if found is None:
            with self.lock(kind, key):
                found = self._whole(kind, key, inputs(), read, locked=True)  # another process may have computed it
                if found is None:
                    artifact = self._compute(kind, key, made_of, inputs, compute)
                    self.watch(artifact, False)
                    try:
                        return artifact, read(artifact)
                    except Damaged as damage:
                        raise OSError(f"{artifact.folder}: {damage}, just written; is the disk failing?") from damage
        self.watch(found[0], True)
        return found

    def find(self, kind: str, key: str) -> Artifact | None:
        """Returns an artifact without reading its files; None if it is missing, damaged or of another version."""
        with suppress(Damaged, OtherVersion):
            return committed(self.root / kind / key)
        return None

    def every(self, kind: str) -> Iterator[Artifact]:
        """Yields the artifacts of a kind that `find` returns."""
        for path in sorted((self.root / kind).glob("*")):
            if KEY.fullmatch(path.name) and (artifact := self.find(kind, path.name)):
                yield artifact

    def quarantine(self, kind: str, key: str, reason: object) -> bool:
        """Renames a damaged artifact, so that it can be inspected but is never read. Returns: False if it is gone."""
        return durable.quarantine(self.root / kind / key, f"store: {kind}/{key} is damaged ({reason})")

    def remove(self, kind: str, key: str) -> int:
        """Deletes an artifact if it exists. Returns: the bytes freed."""
        folder = self.root / kind / key
        try:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            scratch = folder.with_name(f"{durable.SCRATCH}{secrets.token_hex(4)}-{key}")
            folder.rename(scratch)  # first, so that no process finds half of it
        except FileNotFoundError:
            return 0
        shutil.rmtree(scratch, ignore_errors=True)
        return size

    @contextmanager
    def lock(self, kind: str, key: str, *, wait: bool = True, busy: str = "") -> Iterator[None]:
        """Holds a lock that one process can hold at a time. The kernel frees it when its holder dies.

        Args:
            busy: what the holder is doing, for the message to those who wait.
        Raises: filelock.Timeout if another process holds it, and `wait` is false.
        """
        path = self.root / "locks" / f"{kind}-{key}"
        lock = FileLock(path, fallback_to_soft=False)  # a soft one outlives a killed holder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0.2)
        except Timeout:
            if not wait:
                raise
            log.info("store: another run is %s; waiting for it", busy or f"computing {kind}/{key[:12]}")
            lock.acquire()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                with naming_setting("store.dir", self.root):
                    raise
            raise OSError(
                error.errno,
                f"store.dir={self.root}: its file system has no locks ({os.strerror(error.errno)}), without which "
                "two runs could write the same stage at once: set store.dir or STASC_STORE to a folder on a local disk",
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _whole(
        self, kind: str, key: str, inputs: Mapping[str, str], read: Callable[[Artifact], T], *, locked: bool = False
    ) -> tuple[Artifact, T] | None:
        """Returns the artifact and what `read` returns for it; None if it is missing, damaged or of other inputs.

        Only the holder of the lock removes an invalid one: another process may be replacing it.
        """
        folder = self.root / kind / key
        if not folder.exists():
            return None
        try:
            artifact = committed(folder)
            if artifact.inputs == inputs:
                return artifact, read(artifact)
        except Damaged as damage:
            if locked:
                self.quarantine(kind, key, damage)
            return None
        if locked:
            names = ", ".join(name for name in inputs if artifact.inputs.get(name) != inputs[name])
            log.info(
                "store: %s/%s was computed from other content (%s) than now: computing it again", kind, key[:12], names
            )
            self.remove(kind, key)
        return None

    def _compute(
        self,
        kind: str,
        key: str,
        made_of: Mapping[str, Any],
        inputs: Callable[[], Mapping[str, str]],
        compute: Callable[[Path], None],
    ) -> Artifact:
        work = self.root / "unfinished" / f"{kind}-{key}"
        while True:
            began, given = time.perf_counter(), dict(inputs())
            body = {"schema": SCHEMA, "kind": kind, "key": key, "made_of": made_of, "inputs": given}
            body["machines"] = self._begin(work, given)
            write_sealed(work / COMMIT, body)
            with suppress(InputsChanged):
                compute(work)
                return self._commit(work, {**body, "seconds": time.perf_counter() - began})

    def _begin(self, work: Path, inputs: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """Keeps the files of an interrupted try of the same inputs. Returns: its machines and this one."""
        with suppress(Damaged, KeyError):
            earlier = read_sealed(work / COMMIT)
            if (earlier["schema"], earlier["inputs"]) == (SCHEMA, inputs):
                machines: list[Mapping[str, Any]] = earlier["machines"]
                if self.machine in machines:
                    return machines
                log.warning("store: %s was begun on another machine: its bits may differ from those of one", work)
                return [*machines, self.machine]
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        return [self.machine]

    def _commit(self, work: Path, body: Mapping[str, Any]) -> Artifact:
        for scratch in work.rglob(f"{durable.SCRATCH}*"):
            scratch.unlink()
        durable.publish_modes(work)
        durable.sync_tree(work)
        files = {
            path.relative_to(work).as_posix(): {"size": path.stat().st_size, "sha256": file_sha256(path)}
            for path in sorted(work.rglob("*"))
            if path.is_file() and path != work / COMMIT
        }
        write_sealed(work / COMMIT, {**body, "files": files})
        kind, key = body["kind"], body["key"]
        target = self.root / kind / key
        target.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(work, target)
        return committed(target)


def committed(folder: Path) -> Artifact:
    """Returns the artifact in a folder without reading its files.

    Raises: Damaged or OtherVersion if its COMMIT.json is damaged or has another schema.
    """
    commit = read_sealed(folder / COMMIT)
    if commit["schema"] != SCHEMA:
        found = f"{folder} has schema {commit['schema']}, and this version of stasc reads {SCHEMA}"
        raise OtherVersion(f"{found}: set store.dir to another folder, or remove it")
    if (commit["kind"], commit["key"]) != (folder.parent.name, folder.name):
        raise Damaged(f"{COMMIT} belongs to {commit['kind']}/{commit['key']}")
    if "files" not in commit:
        raise Damaged(f"{COMMIT} belongs to an unfinished artifact")
    names = ("kind", "key", "files", "made_of", "inputs", "machines", "seconds")
    return Artifact(folder=folder, **{name: commit[name] for name in names})
