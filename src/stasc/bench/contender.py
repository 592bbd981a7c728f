"""The process of a contender: loads a model and then does its work once per request.

A request is a line of JSON on standard input, {"do": "warm_up"} or {"do": "repeat"}; a line of JSON on standard output
answers it. The first line of output describes the loading. Output of libraries goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Protocol

WARM_UP_PROMPTS = 32  # prompts per stage
WARM_UP_EXAMPLES = 16
STILL = 1e-12  # a learning rate that leaves float32 weights unchanged: a warm-up must not train


@dataclass(frozen=True)
class Stage:
    """Prompts that may be sampled together; each has as many noise keys as samples are wanted."""

    prompts: list[list[int]]
    keys: list[list[int]]


@dataclass(frozen=True)
class Work:
    """The work in token ids: samples the stages one after another, or trains on the examples.

    `overrides` are the settings that the work was made with, `model` is M_0's folder, and `dtype` every contender's
    default.
    """

    name: str
    title: str
    model: str
    overrides: list[str]
    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: list[int]
    batch_size: int
    learning_rate: float
    max_grad_norm: float
    seed: int
    dtype: str
    stages: list[Stage] = field(default_factory=list)
    examples: list[tuple[list[int], list[int]]] = field(default_factory=list)  # prompt, completion
    epochs: int = 1

    @property
    def trains(self) -> bool:
        """Returns whether the work is training."""
        return bool(self.examples)

    def write(self, path: Path) -> None:
        """Writes the work file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


def read_work(path: Path) -> Work:
    """Reads a work file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content["stages"] = [Stage(**stage) for stage in content["stages"]]
    return Work(**content)


@dataclass(frozen=True)
class Done:
    """The result of one repetition: each sample's length in useful tokens, or the mean loss of the trained tokens."""

    lengths: list[int] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)  # for ours alone: distinct answer prefixes per stage that grew
    loss: float | None = None
    rates: dict[str, float] = field(default_factory=dict)  # for the machine's limit alone
    seconds: float = 0.0  # 0: those of the whole call
    peak_bytes: int = 0  # set by `serve`


class Runner(Protocol):
    """A contender with its model loaded. `setting` describes its settings."""

    setting: str
    versions: dict[str, str]

    def run(self, work: Work) -> Done:
        """Does the work, or a part of it, for which the contender was loaded."""


def useful(ids: Sequence[int], stop_ids: Sequence[int]) -> int:
    """Returns the number of sampled tokens up to and including the first stop token, without padding."""
    stops = set(stop_ids)
    return next((position + 1 for position, id_ in enumerate(ids) if id_ in stops), len(ids))


def serve(load: Callable[[Work, Mapping[str, str]], Runner]) -> None:
    """Runs a contender. The command line gives the work file and, as JSON, the contender's own settings."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    work = read_work(Path(sys.argv[1]))
    options = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    began = time.perf_counter()
    runner = load(work, options)
    loading_s = time.perf_counter() - began
    hello = {"loading_s": loading_s, "setting": runner.setting, "versions": runner.versions}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        part = work if json.loads(line)["do"] == "repeat" else warm_up(work)
        reset_peak()
        began = time.perf_counter()
        done = runner.run(part)
        seconds = done.seconds or time.perf_counter() - began
        done = replace(done, seconds=seconds, peak_bytes=peak_bytes())
        print(json.dumps(asdict(done)), file=answers, flush=True)


def warm_up(work: Work) -> Work:
    """Returns a part of the work that leaves the weights unchanged."""
    stages = [Stage(stage.prompts[:WARM_UP_PROMPTS], stage.keys[:WARM_UP_PROMPTS]) for stage in work.stages]
    return replace(work, stages=stages, examples=work.examples[:WARM_UP_EXAMPLES], epochs=1, learning_rate=STILL)


def reset_peak() -> None:
    """Resets the peak memory of this process and its children, where the system supports it."""
    for pid in family():
        with suppress(OSError):  # then the peak is that of the process's lifetime
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Returns the sum of the peak resident memory of this process and its children; 0 outside Linux."""
    kib = 0
    for pid in family():
        with suppress(OSError):  # the process has ended
            kib += sum(map(int, re.findall(r"^VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)))
    return kib * 1024


def family() -> list[int]:
    """Returns the ids of this process and its descendants."""
    found = [os.getpid()]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):  # the thread has ended
                found += map(int, children.read_text().split())
    return found
