"""Runs contenders on one work by turns (ours, peer, ours, peer, ...), so that a slow spell of the machine hits both."""

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

from stasc.bench.contender import Done, Work

SOURCES = str(Path(__file__).resolve().parents[2])
OURS, LIMIT = "stasc", "limit"


class ContenderError(RuntimeError):
    """A contender could not start, or ended early."""


@dataclass(frozen=True)
class Peer:
    """A contender that this project is compared with."""

    name: str
    module: str  # the contender's module
    venv: str | None  # its environment; None: this one
    trains: bool
    preload: str | None = None  # a library of its environment that makes it faster
    env: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


# Settings of the process that `stasc.machine.processor` makes and anyone could make. generate and vLLM gain nothing
# beyond noise (S2: 67.3 and 34.6 s with them, 68.8 and 36.2 s without).
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "16000000000"}

PEERS = (
    Peer("generate", "stasc.bench.generate", None, trains=False),
    Peer("vllm", "stasc.bench.vllm", "vllm", trains=False, preload="lib/libiomp5.so"),
    Peer("trl", "stasc.bench.sft", "trl", trains=True),
    Peer("trl_tuned", "stasc.bench.sft", "trl", trains=True, env=TUNED, options={"onednn": "true"}),
)
US = Peer(OURS, "stasc.bench.ours", None, trains=True)
MACHINE = Peer(LIMIT, "stasc.bench.limit", None, trains=True)


@dataclass(frozen=True)
class Hello:
    """A contender's first line of output, once it has loaded."""

    loading_s: float
    setting: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Match:
    """One repetition of ours and the repetition of a peer after it."""

    round: int
    peer: str
    ours: Done
    theirs: Done | None  # None without a peer


@dataclass
class Outcome:
    """All results of a work."""

    work: Work
    hellos: dict[str, Hello] = field(default_factory=dict)
    matches: list[Match] = field(default_factory=list)
    limits: list[Done] = field(default_factory=list)  # the machine's limit, by round
    left_out: dict[str, str] = field(default_factory=dict)  # peers, and why


@dataclass(frozen=True)
class Arena:
    """Starts contenders; `folder` has their environments, work files and logs."""

    folder: Path
    threads: int
    options: Mapping[str, Mapping[str, str]]  # by contender

    @contextmanager
    def contender(self, peer: Peer, work: Work) -> Iterator[Contender]:
        """Yields a contender that has loaded. Raises: ContenderError if it cannot, or is not installed."""
        venv = self.folder / (peer.venv or "")
        python = venv / "bin" / "python" if peer.venv else Path(sys.executable)
        if not python.exists():
            raise ContenderError(f"not installed: there is no {self.folder.name}/{peer.venv}")
        file = self.folder / "work" / f"{work.name}.json"
        work.write(file)
        log = self.folder / "logs" / f"{work.name}-{peer.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        options = {**peer.options, **self.options.get(peer.name, {})}
        command = [str(python), "-m", peer.module, str(file), json.dumps(options)]
        ours = {"PYTHONPATH": SOURCES, "OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1"}
        env = {**os.environ, **peer.env, **ours, "VLLM_CACHE_ROOT": str(self.folder / "cache")}
        if peer.preload and (venv / peer.preload).exists():
            env["LD_PRELOAD"] = str(venv / peer.preload)
        with (
            log.open("w", encoding="utf-8") as errors,
            subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            try:
                yield Contender(process, log)
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

    def do(self, what: str) -> Done:
        """Requests `warm_up` or `repeat`. Raises: ContenderError if the process ends instead of answering."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # `_read` raises for it
            print(json.dumps({"do": what}), file=self._process.stdin, flush=True)
        return Done(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        while (line := self._process.stdout.readline()) and not line.startswith("{"):
            pass  # output of a library that is being imported
        if not line:
            said = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
            raise ContenderError(f"it ended with status {self._process.wait()}: {said[-1] if said else 'no word'}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def race(arena: Arena, work: Work, peers: Sequence[Peer], repetitions: int, say: Callable[[str], None]) -> Outcome:
    """Runs a work `repetitions` times against each peer. The outcome gives the reason why a peer was left out."""
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
                reply = ours.do("repeat")
                try:
                    theirs = rivals[name].do("repeat") if name else None
                except ContenderError as error:
                    outcome.left_out[name] = str(error)
                    del rivals[name]
                else:
                    _record(outcome, Match(round_, name, reply, theirs), say)
            outcome.limits.append(limit.do("repeat"))
    return outcome


def _enter(stack: ExitStack, arena: Arena, peer: Peer, work: Work, outcome: Outcome) -> Contender:
    contender = stack.enter_context(arena.contender(peer, work))
    contender.do("warm_up")
    outcome.hellos[peer.name] = contender.hello
    return contender


def _record(outcome: Outcome, match: Match, say: Callable[[str], None]) -> None:
    theirs = f", {match.peer} {match.theirs.seconds:.1f} s" if match.theirs else ""
    say(f"{outcome.work.name} round {match.round + 1}: {OURS} {match.ours.seconds:.1f} s{theirs}")
    outcome.matches.append(match)


def grow(arena: Arena, works: Sequence[Work], repetitions: int, say: Callable[[str], None]) -> list[Outcome]:
    """Runs this project alone on works of growing size, by turns."""
    outcomes = [Outcome(work) for work in works]
    with ExitStack() as stack:
        ours = [_enter(stack, arena, US, outcome.work, outcome) for outcome in outcomes]
        for round_ in range(repetitions):
            for contender, outcome in zip(ours, outcomes, strict=True):
                _record(outcome, Match(round_, "", contender.do("repeat"), None), say)
    return outcomes
