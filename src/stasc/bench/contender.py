"""A contender: a process that loads a model, and then does its work once whenever it is told to.

A line of JSON on standard input asks for one thing, {"do": "warm_up"} or {"do": "repeat"}; a line of JSON on standard
output answers it. Before the first, it says how it loaded. What libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

WARM_UP_PROMPTS = 32  # of each stage
WARM_UP_EXAMPLES = 16
STILL = 1e-12  # a learning rate that leaves float32 weights as they are: a warm-up must not train


@dataclass(frozen=True)
class Stage:
    """Prompts that may be sampled together, and noise keys, as many as answers are wanted, for each of them."""

    prompts: list[list[int]]
    keys: list[list[int]]


@dataclass(frozen=True)
class Work:
    """What is to be done, in token ids: to sample the stages one after another, or to train on the examples.

    `overrides` are the settings that the work was made with, `model` is the folder with M_0, and `dtype` what every
    contender computes in unless told otherwise.
    """

    name: str
    title: str
    model: str
    overrides: list[str]
    stages: list[Stage]
    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: list[int]
    examples: list[tuple[list[int], list[int]]]  # prompt, completion
    epochs: int
    batch_size: int
    learning_rate: float
    max_grad_norm: float
    seed: int
    dtype: str

    @property
    def trains(self) -> bool:
        return bool(self.examples)

    def write(self, path: Path) -> None:
        """Writes the work file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_work(path: Path) -> Work:
    """The work of a work file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["stages"] = [Stage(**stage) for stage in content["stages"]]
    return Work(**content)


@dataclass(frozen=True)
class Done:
    """What was done: per row the length of its answer in useful tokens, or the mean loss of the trained tokens.

    `followed` is given by us alone: in each stage, the different beginnings of answers to a prompt that another token
    was drawn behind. `seconds` is given where less than the whole call is to count, `rates` by what measures the
    machine.
    """

    lengths: list[int] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)
    loss: float | None = None
    seconds: float | None = None
    rates: dict[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """A contender's side of the work. `setting` says which of its settings it runs with."""

    @property
    def setting(self) -> str: ...

    @property
    def versions(self) -> Mapping[str, str]: ...

    def run(self, work: Work) -> Done:
        """Does the work, which has the model and the settings of the one that it was loaded for."""
        ...


def useful(ids: Sequence[int], stop_ids: Sequence[int]) -> int:
    """How many of the sampled tokens are of use: up to the first stop token, and that one; not what pads after it."""
    stops = set(stop_ids)
    return next((position + 1 for position, id_ in enumerate(ids) if id_ in stops), len(ids))


def serve(load: Callable[[Work, Mapping[str, str]], Runner]) -> None:
    """Runs a contender: its arguments are the work file, and settings of its own as JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work = read_work(Path(sys.argv[1]))
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    began = time.perf_counter()
    runner = load(work, options)
    loading_s = time.perf_counter() - began
    tell(answers, {"loading_s": loading_s, "setting": runner.setting, "versions": dict(runner.versions)})
    for line in sys.stdin:
        part = work if json.loads(line)["do"] == "repeat" else warm_up(work)
        reset_peak()
        began = time.perf_counter()
        done = runner.run(part)
        seconds = time.perf_counter() - began if done.seconds is None else done.seconds
        tell(answers, {**asdict(done), "seconds": seconds, "peak_bytes": peak_bytes()})


def warm_up(work: Work) -> Work:
    """A part of the work, which leaves the weights as they are."""
    stages = [Stage(stage.prompts[:WARM_UP_PROMPTS], stage.keys[:WARM_UP_PROMPTS]) for stage in work.stages]
    return replace(work, stages=stages, examples=work.examples[:WARM_UP_EXAMPLES], epochs=1, learning_rate=STILL)


def tell(out: Any, message: Mapping[str, Any]) -> None:
    print(json.dumps(message), file=out, flush=True)


def reset_peak() -> None:
    """Begins the peak memory of this process and its children anew, where the system can do that."""
    for pid in family():
        with suppress(OSError):  # then the peak is that of the whole life
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Peak resident memory of this process and of its children, added up; 0 where the system does not tell."""
    return sum(_high_water(pid) for pid in family())


def _high_water(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def family() -> list[int]:
    """This process and all that it has started."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found
