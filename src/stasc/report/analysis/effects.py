"""Effects of choices on an outcome: estimates, intervals and p-values, adjusted within each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from stasc.report.design import Complete, scoring
from stasc.report.records import Effect, Interval
from stasc.report.statistics import crossing, intervals, resampling
from stasc.report.statistics.crossing import Crossings, Pool
from stasc.report.statistics.intervals import Array, Mean
from stasc.report.wording import sentence

BOUND = 100.0  # pp: the largest difference of two accuracies
ASKED = (2.0, 5.0)  # pp: sizes of effects for which the report gives the number of questions needed
WIDTHS_AGREE = 0.2  # the largest relative difference of two intervals' widths that agree


@dataclass(frozen=True)
class Contrast:
    """The weights of the cells in an effect. `raw` scales an interaction of two to the difference of differences."""

    factors: tuple[str, ...]
    label: str
    weights: Array
    family: str
    raw: float | None = None


@dataclass(frozen=True)
class Estimates:
    """Effects with the variance components of their intervals and their bootstrap draws (draws, effects)."""

    effects: tuple[Effect, ...]
    parts: tuple[crossing.Components, ...]
    draws: Array


def factorial(design: Complete) -> list[Contrast]:
    """Returns main effects and interactions of all settings with two levels, averaged over the levels of the others.

    A setting that decides what counts as right has no effect: it changes the measure.
    """
    names = list(design.settings)
    unlike = scoring(names)
    two = [i for i, name in enumerate(names) if len(design.settings[name]) == 2 and name not in unlike]
    if not two:
        return []
    high = [[levels[i] == design.settings[names[i]][1] for i in two] for levels in design.cells.values()]
    found = []
    for chosen, weights in intervals.contrasts(np.where(high, 1.0, -1.0)).items():
        factors = tuple(names[two[i]] for i in chosen)
        label = label_of(factors[0], *design.settings[factors[0]]) if len(factors) == 1 else " × ".join(factors)
        family = "primary" if len(factors) == 1 else "secondary"
        found.append(Contrast(factors, label, weights, family, 2.0 if len(factors) == 2 else None))
    return found


def label_of(setting: str, low: str, high: str) -> str:
    """Returns `lenient instead of strict`, preceded by the setting's name if the levels alone are ambiguous."""
    plain = setting in ("filter", "finetune", "model", "dataset", "prompt", "reward")
    return f"{high} instead of {low}" if plain else f"{setting} {high} instead of {low}"


def pairwise(design: Complete) -> list[Contrast]:
    """Returns all pairs of levels of settings with three or more, averaged over the levels of the others."""
    found = []
    unlike = scoring(design.settings)
    for i, (name, levels) in enumerate(design.settings.items()):
        for low, high in combinations(levels, 2) if len(levels) > 2 and name not in unlike else ():
            chosen = [(cell[i] == high) - (cell[i] == low) for cell in design.cells.values()]
            weights = np.array(chosen, float) * len(levels) / len(design.cells)
            found.append(Contrast((name,), label_of(name, low, high), weights, "exploratory"))
    return found


@dataclass(frozen=True)
class Tests:
    """Contrasts' values (..., effects, questions, seeds), their means, and p-values by sign flips over questions.

    The leading dimensions are sweeps, if there are several. No p-value is adjusted yet.
    """

    values: Array
    means: Crossings
    flips: Array


def test(
    contrasts: Sequence[Contrast], tables: Array, pool: Pool | None = None, resamples: int = resampling.DRAWS
) -> Tests:
    """Tests contrasts of `tables` (..., cells, questions, seeds) against 0, with the `pool` of `estimate`."""
    weights = np.stack([one.weights for one in contrasts])
    values = np.einsum("ec,...cqs->...eqs", weights, tables)
    by_question = values.mean(axis=-1)
    flips = resampling.sign_flip(by_question.reshape(-1, by_question.shape[-1]), resamples)
    means = crossing.crossings(values, BOUND, _pool(weights, tables, pool))
    return Tests(values, means, flips.reshape(by_question.shape[:-1]))


def _pool(weights: Array, tables: Array, within: Pool | None) -> Pool | None:
    """Pools the variance between seeds over all contrasts if they weigh all cells equally, as in a factorial.

    A single contrast, and one that leaves cells out, gets the variance between seeds within cells.
    """
    squares = (weights**2).sum(axis=1)
    alike = np.allclose(np.abs(weights), np.abs(weights[:, :1]))
    found = crossing.pooled_between(tables, "all effects") if alike else None
    if found is None and within is None:
        found = crossing.pooled_within([*np.moveaxis(tables, -3, 0)], "variants")
    found = found or within
    return found.times(squares) if found else None


def adjust(
    families: Sequence[str], p: Sequence[float], rule: Callable[[Sequence[float]], list[float]] = resampling.holm
) -> list[float]:
    """Returns p-values adjusted within each family."""
    found = [*p]
    for family in dict.fromkeys(families):
        members = [i for i, name in enumerate(families) if name == family]
        for i, value in zip(members, rule([p[i] for i in members]), strict=True):
            found[i] = value
    return found


def estimate(
    contrasts: Sequence[Contrast],
    tables: Array,
    outcome: str,
    n: int,
    samples: int,
    groups: Sequence[str] | None = None,
    pool: Pool | None = None,
) -> Estimates:
    """Estimates the contrasts' effects on an outcome, with p-values adjusted within each family (Holm).

    `statistics/crossing.py` computes the intervals over questions and seeds, `statistics/resampling.py` the others.

    Args:
        tables: the outcome in %, (cells, questions, seeds).
        groups: the group of each question, if questions come in groups.
        pool: the variance between seeds within a cell, from more cells than these.
    """
    tests = test(contrasts, tables, pool)
    draws = resampling.pigeonhole(tests.values)
    reach = resampling.simultaneous(draws, tests.means.value) / float(intervals.quantile(np.inf))
    crossed = [tests.means.at(i) for i in range(len(contrasts))]
    effects = []
    for i, (one, found) in enumerate(zip(contrasts, crossed, strict=True)):
        low, high = resampling.percentiles(draws[:, i])
        by_question, (questions, seeds) = tests.values[i].mean(axis=1), tables.shape[1:]
        variance = float(by_question.var(ddof=1)) if questions > 1 else 0.0
        width = 2 * intervals.quantile(found.df) * found.se
        detectable = intervals.detectable(found.se, found.df) if found.se else intervals.rule_of_three(questions, BOUND)
        effects.append(
            Effect(
                factors=one.factors,
                label=one.label,
                outcome=outcome,
                n=n,
                interval=clipped(found),
                raw=None if one.raw is None else one.raw * found.value,
                se_question=found.se_question,
                se_seed=found.se_seed,
                se_clustered=None if groups is None else intervals.clustered(by_question, groups, BOUND).se,
                df=found.df,
                bootstrap=Interval(float(draws[:, i].mean()), low, high, "pigeonhole bootstrap, percentiles"),
                agree=abs(width - (high - low)) <= WIDTHS_AGREE * width,
                simultaneous=_scaled(found, max(1.0, reach)),
                p=float(tests.flips[i]),
                p_adjusted=1.0,
                p_crossed=found.p,
                p_crossed_adjusted=1.0,
                family=one.family,
                detectable=detectable,
                needed={f"{pp:g}": intervals.questions_needed(pp, variance) for pp in ASKED if variance},
                questions=questions,
                seeds=seeds,
                samples=samples,
                sentence="",
            )
        )
    return Estimates(adjusted(effects), tuple(found.parts for found in crossed), draws)


def adjusted(
    effects: Sequence[Effect], rule: Callable[[Sequence[float]], list[float]] = resampling.holm
) -> tuple[Effect, ...]:
    """Returns the effects with p-values adjusted within each family, and with their sentences."""
    families = [effect.family for effect in effects]
    flips = adjust(families, [one.p for one in effects], rule)
    crossed = adjust(families, [one.p_crossed for one in effects], rule)
    all_p = zip(effects, flips, crossed, strict=True)
    found = [replace(one, p_adjusted=p, p_crossed_adjusted=both) for one, p, both in all_p]
    return tuple(replace(one, sentence=sentence(one)) for one in found)


def _scaled(found: crossing.Crossed, reach: float) -> Interval:
    if found.low is None or found.high is None:
        return Interval(found.value, None, None, found.method)
    low, high = found.value + reach * (found.low - found.value), found.value + reach * (found.high - found.value)
    return clipped(Interval(found.value, low, high, "simultaneous: max-|t| over all effects on the outcome"))


def clipped(found: Interval | Mean, lowest: float = -BOUND) -> Interval:
    """Returns the interval with its bounds clipped to possible differences, or from `lowest` on."""
    low = None if found.low is None else max(lowest, found.low)
    high = None if found.high is None else min(BOUND, found.high)
    return Interval(found.value, low, high, found.method)
