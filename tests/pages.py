"""Synthetic sweeps and analyses for the page, in memory. The numbers are not computed from the answers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stasc.records import Question
from stasc.report.records import Analysis, Cell, Change, Difference, Effect, Interval, Run, Sweep

FACTORS = {
    "init": ("fixed", "evolving"),
    "filter": ("strict", "lenient"),
    "start": ("fixed", "evolving"),
    "finetune": ("full", "lora"),
}
WORDS = np.array(
    [f"{a}{b}{c}" for a, b, c in itertools.product(("ka", "lo", "mi", "nu"), ("r", "st", "v"), ("en", "a"))]
)
SETTINGS = {
    "correct_at": 1.0,
    "filter": {"_target_": "stasc.choices.filter.Strict", "margin": 0.0},
    "model": {"path": "/models/a-small-model"},
    "dataset": {"_target_": "stasc.tasks.datasets.Countries"},
}


def made(
    factors: int = 3,
    seeds: Sequence[int] = (0, 1, 2),
    n: int = 3,
    questions: int = 20,
    words: int = 6,
    text: str = "",
    train: int = 6,
) -> tuple[Sweep, Analysis]:
    """Returns a sweep with an analysis. `text` ends every question, answer and question id."""
    varied = dict([*FACTORS.items()][:factors])
    grid = [dict(zip(varied, levels, strict=True)) for levels in itertools.product(*varied.values())]
    cells = {"-".join(level[:2] for level in levels.values()) or "EIE": levels for levels in grid}
    asked = {
        name: Question(name, f"What is the capital of country {name}?{text}", (f"city {name}{text}", "or another"))
        for name in [f"{split}/{i}{text}" for split in ("test", "train") for i in range(questions)]
    }
    runs = tuple(
        _run(cell, seed, i, n, questions, words, text, train)
        for i, (cell, seed) in enumerate(itertools.product(cells, seeds))
    )
    sweep = Sweep("made-up", Path("multirun/made-up"), varied, cells, runs, (), (), asked)
    return sweep, _analysis(varied, cells, seeds, n, questions)


def _run(cell: str, seed: int, i: int, n: int, questions: int, words: int, text: str, train: int) -> Run:
    draw = np.random.default_rng((i, seed))
    outcomes = _answers(draw, "test", range(n + 1), questions, words, text)
    pairs = _answers(draw, "train", range(1, n + 1), train, words, text)
    pairs["kept"] = pairs["r2"] > pairs["r1"]
    pairs["dropped"] = None  # as in schema 1
    iterations = [
        {"n": k, "test": {"init_acc": 0.4 + 0.03 * k + 0.01 * seed, "corr_acc": 0.35 + 0.07 * k - 0.01 * seed}}
        for k in range(n + 1)
    ]
    return Run(
        f"{cell}-seed{seed}", None, cell, seed, "finished", "", SETTINGS, iterations, outcomes, lambda: pairs, ()
    )


def _answers(
    draw: np.random.Generator, split: str, iterations: Sequence[int], questions: int, words: int, text: str
) -> pd.DataFrame:
    rows = len(iterations) * questions
    said = WORDS[draw.integers(len(WORDS), size=(2, rows, words))]
    y1, y2 = ([" ".join(line) + text for line in half] for half in said)
    r1, r2 = (draw.random((2, rows)) < 0.5).astype(float)
    return pd.DataFrame(
        {
            "n": np.repeat(list(iterations), questions),
            "question": [f"{split}/{i}{text}" for i in range(questions)] * len(iterations),
            **{"sample": 0, "i": 0, "seen": 0, "k": 0, "y1": y1, "y2": y2, "r1": r1, "r2": r2},
        }
    )


def interval(value: float, half: float = 3.0) -> Interval:
    """Returns an interval that is symmetric about a value."""
    return Interval(value, value - half, value + half, "questions and seeds crossed")


def effect(
    factors: tuple[str, ...], outcome: str, value: float, label: str, questions: int, seeds: int, n: int = 3
) -> Effect:
    """Returns an effect of this size."""
    sentence = f"{label}: {value:+.1f} pp [{value - 3:+.1f}, {value + 3:+.1f}], adjusted p 0.031, {seeds} seeds"
    return Effect(
        **{"factors": factors, "label": label, "outcome": outcome, "n": n, "interval": interval(value)},
        **{"raw": None},
        **{
            "se_question": 1.1,
            "se_seed": 0.8,
            "se_clustered": 1.3,
            "df": 4.2,
            "bootstrap": interval(value, 2.9),
            "agree": True,
        },
        **{"simultaneous": interval(value, 4.5), "p": 0.01, "p_adjusted": 0.031, "p_crossed": 0.04},
        **{"p_crossed_adjusted": 0.12, "family": "primary" if len(factors) == 1 else "secondary", "detectable": 4.4},
        **{"needed": {"2": 1200, "5": 190}, "questions": questions, "seeds": seeds, "samples": 1, "sentence": sentence},
    )


def _analysis(
    factors: Mapping[str, tuple[str, str]],
    cells: Mapping[str, Mapping[str, str]],
    seeds: Sequence[int],
    n: int,
    questions: int,
) -> Analysis:
    values = itertools.cycle((5.2, -1.4, 0.6, -3.3, 2.2))
    effects = [
        effect(
            several,
            outcome,
            next(values),
            f"{high} instead of {low}" if len(several) == 1 else " × ".join(several),
            questions,
            len(seeds),
        )
        for outcome in ("correction", "gain")
        for size in range(1, len(factors) + 1)
        for several in itertools.combinations(factors, size)
        for low, high in [factors[several[0]]]
    ]
    curves = {
        cell: tuple(_cell(cell, levels, k, 40 + i + 4 * k, seeds, questions) for k in range(n + 1))
        for i, (cell, levels) in enumerate(cells.items())
    }
    provenance: dict[str, Any] = {
        "commands": [
            "python -m stasc.run --multirun init=fixed,evolving seed=0,1,2",
            "python -m stasc.report multirun/x",
        ],
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"processor": "Example CPU", "threads": 2},
    }
    return Analysis(
        **{
            "name": "made-up",
            "n": n,
            "headline": "init matters most: evolving instead of fixed adds 5.2 pp [2.2, 8.2].",
        },
        declared=f"The final iteration, {n}, counts; it was chosen beforehand, the same for all variants.",
        certainty="It is fairly sure that init matters most: its interval is apart from the others'.",
        power="With 3 seeds and 20 questions, this design detects effects of 4.4 pp or more with probability 0.8.",
        trajectories=tuple(
            effect((name,), "correction", k + 1.0, f"{high} instead of {low}", questions, len(seeds), k)
            for name, (low, high) in factors.items()
            for k in range(1, n + 1)
        ),
        **{
            "effects": tuple(effects),
            "comparisons": (),
            "differences": _differences([*cells], seeds),
            "cells": tuple(curve[-1] for curve in curves.values()),
        },
        **{"curves": curves, "optimistic": {cell: interval(55.0) for cell in cells}, "ceilings": {}},
        **{"noise_floor": {"M_0": interval(0.0, 2.5)}, "notes": ("Nothing is missing.",), "provenance": provenance},
    )


def _differences(cells: Sequence[str], seeds: Sequence[int]) -> tuple[Difference, ...]:
    return tuple(
        Difference(one, other, interval(4.0), interval(4.0, 3.5), 0.6, tuple(seeds))
        for one, other in itertools.combinations(cells, 2)
    )


def _cell(name: str, levels: Mapping[str, str], n: int, value: float, seeds: Sequence[int], questions: int) -> Cell:
    shares = {"right_right": value - 8.0, "right_wrong": 6.0, "wrong_right": 8.0, "wrong_wrong": 94.0 - value}
    return Cell(
        **{"name": name, "levels": levels, "kind": "variant", "n": n, "initial": interval(value - 2.0)},
        **{"correction": interval(value), "gain": interval(2.0), "over_initial": interval(value - 40.0)},
        **{"over_correction": interval(value - 38.0), "transitions": shares},
        changes=dict.fromkeys(seeds, Change(8, 6, interval(10.0), 0.79, True)),
        **{"questions": questions, "seeds": tuple(seeds), "samples": 1, "pairs": 384.0 * n, "kept": 20.0 * n},
        **{"steps": 5.0 * n, "tokens": 300.0 * n, "seconds": 90.0 * n, "reused": 4.0},
    )
