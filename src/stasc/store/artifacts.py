"""Durable artifacts: what each stage gave, under the key of everything that decided it.

An artifact is an immutable folder, `<kind>/<key>`, with a COMMIT.json that has its files' sizes and sha256, and the
digests of the contents that it was computed from. It comes into being by one rename, under a lock that the kernel frees
when its holder dies, and is verified whenever it is read; what fails is set aside and derived again. Where that gives
other content, as on another machine, what was computed from the former is derived again too. joblib, diskcache and
datasets' cache unpickle what they read or check nothing, and DVC wants a repository; so this is our own but for the
locks, which are `filelock`'s.
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
from stasc.machine.paths import naming
from stasc.machine.sealed import Damaged, _missing_is_damage, digest, file_sha256, read_sealed, write_sealed

log = logging.getLogger(__name__)

SCHEMA = 2  # of COMMIT.json, of the files beside it, and of leases
COMMIT = "COMMIT.json"
KEY = re.compile("[0-9a-f]{64}")
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}  # what flock says of a file system that has none
KINDS = ("initial", "correction", "filter", "finetune", "model", "evaluation")

T = TypeVar("T")


class InputsChanged(Exception):
    """What an artifact is computed from has become other content since that began."""


class OtherVersion(ValueError):
    """An artifact was written by a version of stasc that this one does not understand."""


@dataclass(frozen=True)
class Artifact:
    """A committed artifact. `made_of` is what its key is the hash of, without secrets.

    `inputs` are the contents that it was computed from, by their names in `made_of`; `machines` those that did it: more
    than one if it was interrupted.
    """

    kind: str
    key: str
    folder: Path
    files: Mapping[str, Mapping[str, Any]]  # name: size in bytes, sha256
    made_of: Mapping[str, Any]
    inputs: Mapping[str, str]
    machines: Sequence[Mapping[str, Any]]
    seconds: float  # that computing it took

    @property
    def content(self) -> str:
        """Digest of its files."""
        return digest({name: file["sha256"] for name, file in self.files.items()})

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(file["size"] for file in self.files.values())

    def read(self, name: str) -> bytes:
        """The content of a file, checked. Raises: Damaged."""
        with _missing_is_damage():
            data = (self.folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.files.get(name, {}).get("sha256"):
            raise Damaged(f"{name} does not match its checksum")
        return data

    def verify(self) -> None:
        """Checks every file. Raises: Damaged."""
        for name, file in self.files.items():
            with _missing_is_damage():
                actual = file_sha256(self.folder / name)
            if actual != file["sha256"]:
                raise Damaged(f"{name} does not match its checksum")


@dataclass(frozen=True)
class Store:
    """The artifacts in a folder, shared by all runs and processes that name it.

    `watch` is told of every stage: its artifact, and whether it was there already.
    """

    root: Path
    machine: Mapping[str, Any]
    watch: Callable[[Artifact, bool], None] = lambda artifact, reused: None

    def derive(
        self,
        kind: str,
        key: str,
        made_of: Mapping[str, Any],
        inputs: Callable[[], Mapping[str, str]],
        compute: Callable[[Path], None],
        read: Callable[[Artifact], T],
    ) -> tuple[Artifact, T]:
        """An artifact and what `read` makes of it, computed first if it is not there, or damaged, or of other inputs.

        Args:
            inputs: gives the contents of its inputs.
            compute: fills a folder, which may hold whole files of an earlier try that was interrupted. Raises
                InputsChanged, before it writes any, where its first step changed an input, as where weights that were
                dropped are derived again: then it is begun anew.
            read: raises Damaged where the artifact is not what it was.
        """
        found = self._whole(kind, key, inputs(), read)
        if found is None:
            with self.lock(kind, key):
                found = self._whole(kind, key, inputs(), read, locked=True)  # another process may have been first
                if found is None:
                    artifact = self._compute(kind, key, made_of, inputs, compute)
                    self.watch(artifact, False)
                    try:
                        return artifact, read(artifact)
                    except Damaged as damage:
                        raise OSError(f"{artifact.folder}: {damage}, just written; is the disk failing?") from damage
        self.watch(found[0], True)
        return found

    def keys(self, kind: str) -> list[str]:
        """Of all that stands in the place of an artifact of this kind."""
        return sorted(path.name for path in (self.root / kind).glob("*") if KEY.fullmatch(path.name))

    def find(self, kind: str, key: str) -> Artifact | None:
        """An artifact that looks sound, its files unread; None if there is none."""
        with suppress(Damaged, OtherVersion):
            return committed(self.root / kind / key)
        return None

    def every(self, kind: str) -> Iterator[Artifact]:
        """All sound-looking artifacts of a kind, their files unread."""
        for key in self.keys(kind):
            if artifact := self.find(kind, key):
                yield artifact

    def set_aside(self, kind: str, key: str, reason: object) -> bool:
        """Keeps a damaged artifact for inspection, where it is never read again. Returns: False if it has gone."""
        return durable.set_aside(self.root / kind / key, f"store: {kind}/{key} is damaged ({reason})")

    def remove(self, kind: str, key: str) -> int:
        """Deletes an artifact if it is there. Returns: the bytes that it had."""
        folder = self.root / kind / key
        try:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            gone = folder.with_name(f"{durable.SCRATCH}{secrets.token_hex(4)}-{key}")
            folder.rename(gone)  # first, so that nobody finds half of it
        except FileNotFoundError:
            return 0
        shutil.rmtree(gone, ignore_errors=True)
        return size

    @contextmanager
    def lock(self, kind: str, key: str, *, wait: bool = True, busy: str = "") -> Iterator[None]:
        """Held by one process at a time. The kernel frees it when its holder dies. `busy` says what it is doing.

        Raises: filelock.Timeout if another process holds it, and `wait` is false.
        """
        path = self.root / "locks" / f"{kind}-{key}"
        lock = FileLock(path, fallback_to_soft=False)  # a soft one outlives a killed holder
        try:
            with self._locking():
                path.parent.mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0.2)
        except Timeout:
            if not wait:
                raise
            log.info("store: another run is %s; waiting for it", busy or f"computing {kind}/{key[:12]}")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _locking(self) -> Iterator[None]:
        """An error in taking a lock names the setting. Without locks, two runs could write the same stage at once."""
        try:
            yield
        except Timeout:
            raise
        except OSError as error:
            if error.errno not in NO_LOCKS:
                with naming("store.dir", self.root):
                    raise
            raise OSError(
                error.errno,
                f"store.dir={self.root}: its file system has no locks ({os.strerror(error.errno)}), without which "
                "two runs could write the same stage at once: set store.dir or STASC_STORE to a folder on a local disk",
            ) from error

    def _whole(
        self,
        kind: str,
        key: str,
        inputs: Mapping[str, str],
        read: Callable[[Artifact], T],
        *,
        locked: bool = False,
    ) -> tuple[Artifact, T] | None:
        """The artifact and what `read` makes of it, if it is there and whole, and computed from these inputs.

        Only who holds the lock takes away what is not: another process may be replacing it.
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
                self.set_aside(kind, key, damage)
            return None
        if locked:
            names = ", ".join(name for name in inputs if artifact.inputs.get(name) != inputs[name])
            log.info("store: %s/%s was computed from other content (%s) than there is now", kind, key[:12], names)
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
        """Keeps what an interrupted try left, if it was of the same inputs. Returns: the machines, its and ours."""
        try:
            earlier = read_sealed(work / COMMIT)
            if (earlier["schema"], earlier["inputs"]) == (SCHEMA, inputs):
                machines: list[Mapping[str, Any]] = earlier["machines"]
                if self.machine not in machines:
                    log.warning("store: %s was begun on another machine, so it is not bit for bit as from one", work)
                    return [*machines, self.machine]
                return machines
        except (Damaged, KeyError):
            pass
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
    """The artifact in a folder, its files unread. Raises: Damaged if its COMMIT.json is, OtherVersion."""
    commit = read_sealed(folder / COMMIT)
    if commit["schema"] != SCHEMA:
        raise OtherVersion(
            f"{folder} has schema {commit['schema']}, and this version of stasc reads {SCHEMA}: "
            "set store.dir to another folder, or remove it"
        )
    if (commit["kind"], commit["key"]) != (folder.parent.name, folder.name):
        raise Damaged(f"{COMMIT} is that of {commit['kind']}/{commit['key']}")
    if "files" not in commit:
        raise Damaged(f"{COMMIT} is that of an unfinished one")
    return Artifact(
        commit["kind"],
        commit["key"],
        folder,
        commit["files"],
        commit["made_of"],
        commit["inputs"],
        commit["machines"],
        commit["seconds"],
    )
