"""From repetitions to figures: speeds, ratios pair by pair, and the share of what the machine can do."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from stasc.bench.contender import Stage, Work
from stasc.bench.race import Outcome, Reply


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, with the least and the greatest."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Raises: StatisticsError if there is none."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Figures:
    """What a work says of one contender; `ratio` is our speed by its speed, `memory_ratio` our peak by its peak."""

    name: str
    seconds: Spread
    tokens: float
    speed: Spread  # tokens per second
    peak_bytes: float
    loading_s: float
    loss: float | None  # of the first repetition
    ratio: Spread | None
    memory_ratio: float | None
    share: Spread | None  # of the limit, ours alone


def figures(outcome: Outcome, ours: str) -> list[Figures]:
    """Ours first, then each peer that ran."""
    work, matches = outcome.work, outcome.matches
    shares = [
        limit_seconds(work, match.ours, outcome.limits[match.round].rates) / match.ours.seconds
        for match in matches
        if match.round < len(outcome.limits)
    ]
    rows = [_figures(outcome, ours, [match.ours for match in matches], None, None, shares)]
    for name in dict.fromkeys(match.peer for match in matches if match.theirs):
        pairs = [(match.ours, match.theirs) for match in matches if match.peer == name and match.theirs]
        ratios = [speed(work, first) / speed(work, second) for first, second in pairs]
        peaks = [first.peak_bytes / second.peak_bytes for first, second in pairs if second.peak_bytes]
        memory = statistics.median(peaks) if peaks else None
        rows.append(_figures(outcome, name, [second for _, second in pairs], spread(ratios), memory, []))
    return rows


def _figures(
    outcome: Outcome,
    name: str,
    replies: Sequence[Reply],
    ratio: Spread | None,
    memory_ratio: float | None,
    shares: Sequence[float],
) -> Figures:
    work = outcome.work
    return Figures(
        name=name,
        seconds=spread([reply.seconds for reply in replies]),
        tokens=statistics.median(tokens(work, reply) for reply in replies),
        speed=spread([speed(work, reply) for reply in replies]),
        peak_bytes=statistics.median(reply.peak_bytes for reply in replies),
        loading_s=outcome.hellos[name].loading_s,
        loss=replies[0].loss,
        ratio=ratio,
        memory_ratio=memory_ratio,
        share=spread(shares) if shares else None,
    )


def tokens(work: Work, reply: Reply) -> int:
    """Useful tokens sampled; or tokens of the trained examples, each with its whole prompt, times epochs."""
    if work.trains:
        return work.epochs * sum(len(prompt) + len(completion) for prompt, completion in work.examples)
    return sum(reply.lengths)


def speed(work: Work, reply: Reply) -> float:
    return tokens(work, reply) / reply.seconds


@dataclass(frozen=True)
class Needed:
    """What a work needs at least: token positions that go through the layers, and positions that need logits."""

    forward: int
    logits: int


def needed(work: Work, followed: Sequence[int]) -> Needed:
    """Each distinct prompt once, what all prompts of a stage begin with once, each beginning of its answers once.

    Logits: once for each distinct prompt and beginning that a token is drawn behind; or for each trained token.

    Args:
        followed: beginnings of answers that a token is drawn behind, by stage.
    """
    if work.trains:
        prompts = {tuple(prompt) for prompt, _ in work.examples}
        completions = [completion for _, completion in work.examples]
        forward = sum(map(len, prompts)) + sum(len(completion) - 1 for completion in completions)
        return Needed(work.epochs * forward, work.epochs * sum(map(len, completions)))
    forward = logits = 0
    for stage, later in zip(work.stages, followed, strict=True):
        distinct = {tuple(prompt) for prompt in stage.prompts}
        shared = common_prefix(stage)
        forward += shared + sum(len(prompt) - shared for prompt in distinct) + later
        logits += len(distinct) + later
    return Needed(forward, logits)


def common_prefix(stage: Stage) -> int:
    """How many tokens all prompts of a stage begin with."""
    columns = zip(*stage.prompts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


def flops(work: Work, followed: Sequence[int], layers: float, head: float) -> tuple[float, float]:
    """Of the matrix products with layers and output matrix, of so many parameters; a backward pass costs two more."""
    work_needs = needed(work, followed)
    passes = 3 if work.trains else 1
    return 2 * layers * work_needs.forward * passes, 2 * head * work_needs.logits * passes


def limit_seconds(work: Work, reply: Reply, rates: dict[str, float]) -> float:
    """How long the machine's matrix products alone would take."""
    layers, head = flops(work, reply.followed, rates["layers_parameters"], rates["head_parameters"])
    return layers / rates["layers_flops_per_s"] + head / rates["head_flops_per_s"]
