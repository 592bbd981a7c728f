"""Ranges of the settings that belong to no design choice, and what evaluation inherits."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from stasc.settings.sections import Evaluation, Loop, Sampling

LOOP: dict[str, Any] = {"seed": 0, "iterations": 3, "patience": 1, "correct_at": 1.0}
SAMPLING: dict[str, Any] = {
    "n_init": 2,
    "n_corr": 3,
    "temperature": 1.0,
    "top_p": 0.95,
    "max_new_tokens": 20,
    "stop": None,
}
EVALUATION: dict[str, Any] = {
    "split": "test",
    "n_init": 1,
    "temperature": None,
    "top_p": None,
    "max_new_tokens": None,
    "batch": None,
}

RANGES = [  # class, its settings, the prefix of their names, one of them, values allowed, values refused
    (Loop, LOOP, "", "seed", (0, 2**31), (-1,)),
    (Loop, LOOP, "", "iterations", (0, 1), (-1,)),
    (Loop, LOOP, "", "patience", (1, 9), (0, -1)),
    (Loop, LOOP, "", "correct_at", (1e-9, 0.5, 1.0), (0.0, -0.1, 1.01, math.nan)),
    (Sampling, SAMPLING, "sampling.", "n_init", (1, 8), (0, -1)),
    (Sampling, SAMPLING, "sampling.", "n_corr", (1, 8), (0, -1)),
    (Sampling, SAMPLING, "sampling.", "temperature", (0, 0.7, 3.0), (-0.1, math.nan)),
    (Sampling, SAMPLING, "sampling.", "top_p", (1e-9, 0.5, 1), (0.0, -0.1, 1.01, math.nan)),
    (Sampling, SAMPLING, "sampling.", "max_new_tokens", (1, 4096), (0, -1)),
    (
        Sampling,
        SAMPLING,
        "sampling.",
        "stop",
        (None, [], ["\n", "Q:"], ["\\neq"]),
        ([""], ["Q:", ""], ["\\nQ:"], ["\\n"]),
    ),
    (Evaluation, EVALUATION, "evaluation.", "split", ("test", "validation"), ("train", "", "Test")),
    (Evaluation, EVALUATION, "evaluation.", "n_init", (1, 16), (0, -1)),
    (Evaluation, EVALUATION, "evaluation.", "temperature", (None, 0, 0.7), (-0.1, math.nan)),
    (Evaluation, EVALUATION, "evaluation.", "top_p", (None, 1e-9, 1), (0.0, 1.01, math.nan)),
    (Evaluation, EVALUATION, "evaluation.", "max_new_tokens", (None, 1), (0, -1)),
    (Evaluation, EVALUATION, "evaluation.", "batch", (None, 1, 64), (0, -1)),
]


@pytest.mark.parametrize(
    ("kind", "settings", "name", "value"),
    [(kind, settings, name, value) for kind, settings, _, name, allowed, _ in RANGES for value in allowed],
)
def test_a_value_within_its_range_is_taken_as_it_is(
    kind: type, settings: dict[str, Any], name: str, value: object
) -> None:
    assert getattr(kind(**settings | {name: value}), name) == value


@pytest.mark.parametrize(
    ("kind", "settings", "prefix", "name", "value"),
    [(kind, settings, prefix, name, value) for kind, settings, prefix, name, _, refused in RANGES for value in refused],
)
def test_a_value_out_of_range_is_refused_by_name(
    kind: type, settings: dict[str, Any], prefix: str, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"^{prefix}{name}={re.escape(str(value))}: expected "):
        kind(**settings | {name: value})


@pytest.mark.parametrize("kind", [Loop, Sampling, Evaluation])
def test_no_setting_has_a_default_in_code(kind: type) -> None:
    settings = {Loop: LOOP, Sampling: SAMPLING, Evaluation: EVALUATION}[kind]
    for name in settings:
        with pytest.raises(TypeError, match=name):
            kind(**{other: value for other, value in settings.items() if other != name})


def test_an_evaluation_asks_for_one_answer_and_one_correction_whatever_training_asks_for() -> None:
    sampling = Evaluation(**EVALUATION).sampling(Sampling(**SAMPLING))
    assert (sampling.n_init, sampling.n_corr) == (1, 1)


def test_an_evaluation_may_ask_for_more_initial_answers() -> None:
    sampling = Evaluation(**EVALUATION | {"n_init": 16}).sampling(Sampling(**SAMPLING))
    assert (sampling.n_init, sampling.n_corr) == (16, 1)


def test_an_evaluation_inherits_from_sampling_what_is_null() -> None:
    assert Evaluation(**EVALUATION).sampling(Sampling(**SAMPLING)) == Sampling(1, 1, 1.0, 0.95, 20, None)


@pytest.mark.parametrize(
    ("name", "value"), [("temperature", 0), ("temperature", 0.7), ("top_p", 0.5), ("max_new_tokens", 7)]
)
def test_an_evaluation_keeps_what_it_sets_and_inherits_the_rest(name: str, value: float) -> None:
    inherited = {"n_init": 1, "n_corr": 1, "temperature": 1.0, "top_p": 0.95, "max_new_tokens": 20, "stop": None}
    sampling = Evaluation(**EVALUATION | {name: value}).sampling(Sampling(**SAMPLING))
    assert sampling == Sampling(**inherited | {name: value})


@pytest.mark.parametrize(
    ("temperature", "n_init", "n_corr", "named"),
    [
        (0.0, 2, 3, "the answers of sampling.n_init=2 and of sampling.n_corr=3 are all the same"),
        (0.0, 1, 3, "the answers of sampling.n_corr=3 are all the same"),
        (0.0, 1, 1, None),
        (0.1, 2, 3, None),
    ],
)
def test_several_greedy_answers_are_warned_of(temperature: float, n_init: int, n_corr: int, named: str | None) -> None:
    warning = Sampling(
        n_init=n_init, n_corr=n_corr, temperature=temperature, top_p=1.0, max_new_tokens=8, stop=[]
    ).warning
    assert (named is None and warning is None) or (named and warning and named in warning)
