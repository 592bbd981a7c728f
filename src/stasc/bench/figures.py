"""Computes figures from repetitions: speeds, ratios pair by pair, and shares of the machine's limit."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from stasc.bench.contender import Done, Work
from stasc.bench.race import Outcome


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, with their minimum and maximum."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Returns the spread of some numbers. Raises: StatisticsError for none."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figures:
    """A contender's figures on a work; `ratio` is our speed over its speed, `memory_ratio` our peak over its peak."""

    name: str
    seconds: Spread
    tokens: float
    speed: Spread  # tokens per second
    peak_bytes: float
    loading_s: float
    loss: float | None  # loss of the first repetition
    ratio: Spread | None = None
    memory_ratio: float | None = None
    share: Spread | None = None  # share of the machine's limit, for ours alone


def figures(outcome: Outcome, ours: str) -> list[Figures]:
    """Returns our figures, then those of each peer that ran."""
    work, matches = outcome.work, outcome.matches
    shares = [
        limit_seconds(work, match.ours, outcome.limits[match.round].rates) / match.ours.seconds
        for match in matches
        if match.round < len(outcome.limits)
    ]
    rows = [
        replace(_figures(outcome, ours, [match.ours for match in matches]), share=spread(shares) if shares else None)
    ]
    for name in dict.fromkeys(match.peer for match in matches if match.theirs):
        pairs = [(match.ours, match.theirs) for match in matches if match.peer == name and match.theirs]
        ratios = [speed(work, first) / speed(work, second) for first, second in pairs]
        peaks = [first.peak_bytes / second.peak_bytes for first, second in pairs if second.peak_bytes]
        row = _figures(outcome, name, [second for _, second in pairs])
        rows.append(replace(row, ratio=spread(ratios), memory_ratio=statistics.median(peaks) if peaks else None))
    return rows


def _figures(outcome: Outcome, name: str, replies: Sequence[Done]) -> Figures:
    work = outcome.work
    return Figures(
        name=name,
        seconds=spread([reply.seconds for reply in replies]),
        tokens=statistics.median(tokens(work, reply) for reply in replies),
        speed=spread([speed(work, reply) for reply in replies]),
        peak_bytes=statistics.median(reply.peak_bytes for reply in replies),
        loading_s=outcome.hellos[name].loading_s,
        loss=replies[0].loss,
    )


def tokens(work: Work, reply: Done) -> int:
    """Returns the useful tokens sampled, or the tokens of the trained examples with their prompts, times epochs."""
    if work.trains:
        return work.epochs * sum(len(prompt) + len(completion) for prompt, completion in work.examples)
    return sum(reply.lengths)


def speed(work: Work, reply: Done) -> float:
    """Returns tokens per second."""
    return tokens(work, reply) / reply.seconds


@dataclass(frozen=True)
class Needed:
    """The minimum of a work: token positions that pass through the layers, and positions that need logits."""

    forward: int
    logits: int


def needed(work: Work, followed: Sequence[int]) -> Needed:
    """Counts the common prefix of a stage's prompts, each distinct prompt and each distinct answer prefix once.

    Logits are needed for each distinct prefix that a token is sampled after, or for each trained token.

    Args:
        followed: the distinct answer prefixes that a token is sampled after, by stage.
    """
    if work.trains:
        prompts = {tuple(prompt) for prompt, _ in work.examples}
        completions = [completion for _, completion in work.examples]
        forward = sum(map(len, prompts)) + sum(len(completion) - 1 for completion in completions)
        return Needed(work.epochs * forward, work.epochs * sum(map(len, completions)))
    forward = logits = 0
    for stage, later in zip(work.stages, followed, strict=True):
        distinct = {tuple(prompt) for prompt in stage.prompts}
        columns = zip(*stage.prompts, strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))  # tokens of the common prefix
        forward += shared + sum(len(prompt) - shared for prompt in distinct) + later
        logits += len(distinct) + later
    return Needed(forward, logits)


def flops(work: Work, followed: Sequence[int], layers: float, head: float) -> tuple[float, float]:
    """Returns the FLOPs of the products with the layers and with the output matrix, given their parameter counts."""
    work_needs = needed(work, followed)
    passes = 3 if work.trains else 1  # a backward pass costs two forward passes
    return 2 * layers * work_needs.forward * passes, 2 * head * work_needs.logits * passes


def limit_seconds(work: Work, reply: Done, rates: dict[str, float]) -> float:
    """Returns the seconds that the necessary matrix products take at the machine's limit."""
    layers, head = flops(work, reply.followed, rates["layers_parameters"], rates["head_parameters"])
    return layers / rates["layers_flops_per_s"] + head / rates["head_flops_per_s"]
