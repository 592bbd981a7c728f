"""Contenders side by side on one work: ours, peer, ours, peer, ..., so that a slow spell of the machine hits both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stasc.bench.contender import Work

SOURCES = str(Path(__file__).resolve().parents[2])
OURS, LIMIT = "stasc", "limit"


class ContenderError(RuntimeError):
    """A contender ended, or never began; says why."""


@dataclass(frozen=True)
class Peer:
    """Whom we are compared with: the module that runs it, and its environment, `venv` or (null) this one.

    `preload` is a library of that environment which it is faster with; `env` and `options` are what else it begins
    with.
    """

    name: str
    module: str
    venv: str | None
    trains: bool
    preload: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


# What `stasc.machine.processor` tells this project's process, and others could be told. To generate and vLLM it made no
# difference beyond noise (S2: 67.3 and 34.6 s with it, 68.8 and 36.2 s without).
TOLD = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "16000000000"}

PEERS = (
    Peer("generate", "stasc.bench.generate", None, trains=False),
    Peer("vllm", "stasc.bench.vllm", "vllm", trains=False, preload="lib/libiomp5.so"),
    Peer("trl", "stasc.bench.sft", "trl", trains=True),
    Peer("trl_told", "stasc.bench.sft", "trl", trains=True, env=TOLD, options={"onednn": "true"}),
)
US = Peer(OURS, "stasc.bench.ours", None, trains=True)
MACHINE = Peer(LIMIT, "stasc.bench.limit", None, trains=True)


@dataclass(frozen=True)
class Hello:
    """How a contender began."""

    loading_s: float
    setting: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """One repetition of a contender; what it holds besides is said at `contender.Done`."""

    seconds: float
    peak_bytes: int
    lengths: list[int]
    followed: list[int]
    loss: float | None
    rates: dict[str, float]


@dataclass(frozen=True)
class Match:
    """One repetition of ours, the repetition of a peer after it, and the machine's limit measured in that round."""

    round: int
    peer: str
    ours: Reply
    theirs: Reply | None  # none where there is no peer


@dataclass
class Outcome:
    """All that was seen of a work."""

    work: Work
    hellos: dict[str, Hello] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    limits: list[Reply] = field(default_factory=list)  # by round
    left_out: dict[str, str] = field(default_factory=dict)  # peers, and why


@dataclass(frozen=True)
class Arena:
    """Where contenders run: `folder` has their environments, work files and logs."""

    folder: Path
    threads: int
    options: Mapping[str, Mapping[str, str]]  # of contenders, by name

    def python(self, peer: Peer) -> Path:
        """Raises: ContenderError if the peer's environment is not there."""
        if peer.venv is None:
            return Path(sys.executable)
        python = self.folder / peer.venv / "bin" / "python"
        if not python.exists():
            raise ContenderError(f"not installed: there is no {self.folder.name}/{peer.venv}")
        return python

    @contextmanager
    def contender(self, peer: Peer, work: Work) -> Iterator[Contender]:
        """A contender that has loaded. Raises: ContenderError if it cannot."""
        file = self.folder / "work" / f"{work.name}.json"
        work.write(file)
        log = self.folder / "logs" / f"{work.name}-{peer.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        options = {**peer.options, **self.options.get(peer.name, {})}
        command = [str(self.python(peer)), "-m", peer.module, str(file), json.dumps(options)]
        env = {
            **os.environ,
            **peer.env,
            "PYTHONPATH": SOURCES,
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
        }
        env["VLLM_CACHE_ROOT"] = str(self.folder / "cache")
        library = self.folder / (peer.venv or "") / (peer.preload or "")
        if peer.preload and library.exists():
            env["LD_PRELOAD"] = str(library)
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            try:
                contender = Contender(process, log)
                yield contender
            finally:
                assert process.stdin
                process.stdin.close()  # which ends it
                try:
                    process.wait(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()


class Contender:
    """The other end of `contender.serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log
        self.hello = Hello(**self._read())

    def do(self, what: str) -> Reply:
        """Has it `warm_up` or `repeat`. Raises: ContenderError if it ends instead of answering."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # its end is read below
            print(json.dumps({"do": what}), file=self._process.stdin, flush=True)
        return Reply(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        while (line := self._process.stdout.readline()) and not line.startswith("{"):
            pass  # what a library printed while it was imported
        if not line:
            said = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
            raise ContenderError(f"it ended with status {self._process.wait()}: {said[-1] if said else 'no word'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def race(arena: Arena, work: Work, peers: Sequence[Peer], repetitions: int, say: Callable[[str], None]) -> Outcome:
    """Runs a work `repetitions` times against each peer. A peer that fails is left out, and the outcome says why."""
    outcome = Outcome(work)
    with ExitStack() as stack:
        ours = _enter(stack, arena, US, work, outcome)
        limit = _enter(stack, arena, MACHINE, work, outcome)
        rivals: dict[str, Contender] = {}
        for peer in peers:
            try:
                rivals[peer.name] = _enter(stack, arena, peer, work, outcome)
            except ContenderError as error:
                outcome.left_out[peer.name] = str(error)
        for round_ in range(repetitions):
            for name in list(rivals) or [""]:
                match = _match(round_, name, ours, rivals.get(name), outcome)
                if match:
                    say(f"{work.name} round {round_ + 1}: " + told(match))
                    outcome.matches.append(match)
                else:
                    del rivals[name]
            outcome.limits.append(limit.do("repeat"))
    return outcome


def _enter(stack: ExitStack, arena: Arena, peer: Peer, work: Work, outcome: Outcome) -> Contender:
    contender = stack.enter_context(arena.contender(peer, work))
    contender.do("warm_up")
    outcome.hellos[peer.name] = contender.hello
    return contender


def _match(round_: int, name: str, ours: Contender, theirs: Contender | None, outcome: Outcome) -> Match | None:
    reply = ours.do("repeat")
    try:
        return Match(round_, name, reply, theirs.do("repeat") if theirs else None)
    except ContenderError as error:
        outcome.left_out[name] = str(error)
        return None


def told(match: Match) -> str:
    """A match in a few words, for those who watch."""
    words = f"{OURS} {match.ours.seconds:.1f} s"
    return words + (f", {match.peer} {match.theirs.seconds:.1f} s" if match.theirs else "")


def grow(arena: Arena, works: Sequence[Work], repetitions: int, say: Callable[[str], None]) -> list[Outcome]:
    """Ours alone on works of growing size, by turns."""
    outcomes = [Outcome(work) for work in works]
    with ExitStack() as stack:
        ours = [_enter(stack, arena, US, outcome.work, outcome) for outcome in outcomes]
        for round_ in range(repetitions):
            for contender, outcome in zip(ours, outcomes, strict=True):
                match = Match(round_, "", contender.do("repeat"), None)
                say(f"{outcome.work.name} round {round_ + 1}: " + told(match))
                outcome.matches.append(match)
    return outcomes
