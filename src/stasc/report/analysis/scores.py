"""Scores of a run's answers by iteration and question."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from stasc.records import Answer, Pair, Question
from stasc.report.records import Run
from stasc.report.statistics.intervals import Array, pass_at_k
from stasc.runs.vote import Key, majority
from stasc.tasks import rewards

TRANSITIONS = ("right_right", "right_wrong", "wrong_right", "wrong_wrong")


@dataclass(frozen=True)
class Scores:
    """Accuracies of a run in %, (iterations, questions), and shares of the transitions, (iterations, 4).

    A run that stopped early because nothing was kept repeats its last iteration: its model no longer changes.
    """

    initial: Array
    correction: Array
    transitions: Array
    samples: int


def score(run: Run, questions: pd.Index, n: int) -> Scores:
    """Scores a run's answers in iterations 0 to n."""
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


def voted(run: Run) -> Run:
    """Returns the run with each correction replaced by the majority vote of k answers from its initial answer on."""
    return replace(run, outcomes=run.outcomes.assign(r2=run.outcomes["vote"]))


def voted_by_all(run: Run, questions: pd.Index) -> Array:
    """Returns the accuracy, in %, of the majority vote of all of M_0's initial answers, by question."""
    frame, correct_at = run.outcomes[run.outcomes["n"] == 0], float(run.settings["correct_at"])
    if frame["vote_all"].notna().all():  # recorded from schema 2 on
        firsts = frame.groupby("question", sort=False)["vote_all"].first()
        return 100 * (firsts.reindex(questions).to_numpy() >= correct_at).astype(float)
    key = _key(run.settings["reward"])
    right = np.zeros(len(questions))
    for name, answers in frame.groupby("question", sort=False):
        asked = Question(str(name), "", ())
        pairs = [
            Pair(asked, i, i, 0, Answer(text, 0), Answer("", 0), r1, 0.0)
            for i, (text, r1) in enumerate(zip(answers["y1"], answers["r1"], strict=True))
        ]
        right[questions.get_loc(name)] = majority(pairs, key).r1 >= correct_at
    return 100 * right


def _key(settings: Mapping[str, Any]) -> Key:
    """Returns what votes compare in an answer: the reward's key, or for a user's own reward, the normalised answer."""
    kind = getattr(rewards, str(settings["_target_"]).rpartition(".")[2], None)
    if isinstance(kind, type) and issubclass(kind, rewards.WordReward):
        with suppress(TypeError, KeyError, ValueError):  # settings of another version; `baselines` checks the vote
            return kind(settings["scope"], settings["marker"]).key
    return lambda text: tuple(rewards.normalise(text))


def passes(run: Run, questions: pd.Index) -> dict[int, Array]:
    """Returns pass@k of M_0's initial answers in %, by k and question."""
    frame = run.outcomes[run.outcomes["n"] == 0]
    place = questions.get_indexer(pd.Index(frame["question"]))
    right = np.bincount(place, (frame["r1"] >= float(run.settings["correct_at"])).to_numpy(float), len(questions))
    n = int(np.bincount(place, minlength=len(questions)).min())
    ks = [k for k in (2**i for i in range(n.bit_length())) if k < n]
    return {k: 100 * pass_at_k(np.minimum(right, n), n, k) for k in [*ks, n]}
