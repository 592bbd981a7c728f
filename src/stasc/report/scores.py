"""A run's outcomes as numbers: which answers were right, by iteration and question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from stasc.report.records import Run
from stasc.report.statistics import Array, majority, pass_at_k
from stasc.reward import after_last, normalise

TRANSITIONS = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")


@dataclass(frozen=True)
class Scores:
    """Accuracies of a run in %, (iterations, questions), and the shares of the transitions, (iterations, 4).

    Iterations after the run's last, of a run that stopped as nothing was kept, are like its last: its model stayed the
    same.
    """

    initial: Array
    correction: Array
    transitions: Array
    samples: int


def score(run: Run, questions: pd.Index, n: int) -> Scores:
    """What a run's answers come to, in iterations 0 to n."""
    frame, size = run.outcomes[run.outcomes["n"] <= n], len(questions)
    correct_at = float(run.settings["correct_at"])
    r1, r2 = ((frame[name].to_numpy() >= correct_at).astype(float) for name in ("r1", "r2"))
    place = frame["n"].to_numpy() * size + questions.get_indexer(pd.Index(frame["question"]))

    def mean(weights: Array) -> Array:
        count = np.bincount(place, minlength=(n + 1) * size)
        found = 100 * np.bincount(place, weights, (n + 1) * size) / np.maximum(count, 1)
        last = int(frame["n"].max())
        return found.reshape(n + 1, size)[np.minimum(np.arange(n + 1), last)]

    shares = [mean(one).mean(axis=1) for one in (r1 * r2, r1 * (1 - r2), (1 - r1) * r2, (1 - r1) * (1 - r2))]
    samples = len(frame) // max(1, size * frame["n"].nunique())
    return Scores(mean(r1), mean(r2), np.stack(shares, axis=1), samples)


def vote(run: Run, k: int) -> Run:
    """The run as if its correction were what most of k initial answers of M_0 say, of which y1 is the first.

    Its answers are split into groups of k, each a sample. Answers agree if they are the same once normalised as rewards
    do; of as many votes, the answer that was given first counts.
    """
    frame = run.outcomes[run.outcomes["n"] == 0].sort_values(["question", "sample"], kind="stable")
    words = _votes(frame["y1"], run.settings.get("reward") or {})
    rows = []
    for start in _groups(frame, k):
        chosen = start + majority(words[start : start + k])
        rows.append((start, chosen))
    first, then = (frame.iloc[[row[side] for row in rows]].reset_index(drop=True) for side in (0, 1))
    voted = first.assign(sample=first["sample"] // k, y2=then["y1"], r2=then["r1"])
    return replace(run, outcomes=voted)


def _groups(frame: pd.DataFrame, k: int) -> list[int]:
    """Where each whole group of k answers to the same question begins."""
    sizes = frame.groupby("question", sort=False).size().to_numpy()
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [int(begin) + k * i for begin, size in zip(starts, sizes, strict=True) for i in range(size // k)]


def _votes(answers: pd.Series[Any], reward: Mapping[str, Any]) -> list[tuple[str, ...]]:
    marker = reward.get("marker") if reward.get("scope") == "final" else None
    return [tuple(normalise((after_last(marker, text) or "") if marker else text)) for text in answers]


def votes_for_one_correction(run: Run) -> int:
    """How many initial answers have as many tokens as one of them and its correction, to the nearest number."""
    test = run.iterations[0]["test"]
    return max(1, round(1 + test["corr_tokens"] / test["init_tokens"])) if test["init_tokens"] else 1


def passes(run: Run, questions: pd.Index) -> dict[int, Array]:
    """pass@k of M_0's initial answers in %, by k and question."""
    frame = run.outcomes[run.outcomes["n"] == 0]
    place = questions.get_indexer(pd.Index(frame["question"]))
    right = np.bincount(place, (frame["r1"] >= float(run.settings["correct_at"])).to_numpy(float), len(questions))
    n = int(np.bincount(place, minlength=len(questions)).min())
    ks = [k for k in (2**i for i in range(n.bit_length())) if k < n]
    return {k: 100 * pass_at_k(np.minimum(right, n), n, k) for k in [*ks, n]}
