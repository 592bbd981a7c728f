"""Effects of choices on an outcome: estimates, intervals, p-values, for all of a family at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from stasc.report import crossing, resampling, statistics
from stasc.report.crossing import Crossings, Pool
from stasc.report.design import Complete, yardsticks
from stasc.report.records import Effect, Interval
from stasc.report.statistics import Array
from stasc.report.wording import sentence

BOUND = 100.0  # pp: no accuracy differs by more
ASKED = (2.0, 5.0)  # pp, of which is told how many questions they need
WIDTHS_AGREE = 0.2


@dataclass(frozen=True)
class Contrast:
    """The cells' weights that give an effect. `raw` is what turns an interaction of two into differences."""

    factors: tuple[str, ...]
    label: str
    weights: Array
    family: str
    raw: float | None = None


@dataclass(frozen=True)
class Estimates:
    """Effects, the variances that their intervals rest on, and their bootstrap draws, (draws, effects)."""

    effects: tuple[Effect, ...]
    parts: tuple[crossing.Components, ...]
    draws: Array


def factorial(design: Complete) -> list[Contrast]:
    """The main effects and interactions of all settings of two levels, averaged over the levels of the others.

    One that decides what counts as right has none: what it changes is the measure.
    """
    names = list(design.settings)
    unlike = yardsticks(names)
    two = [i for i, name in enumerate(names) if len(design.settings[name]) == 2 and name not in unlike]
    if not two:
        return []
    high = [[levels[i] == design.settings[names[i]][1] for i in two] for levels in design.cells.values()]
    found = []
    for chosen, weights in statistics.contrasts(np.where(high, 1.0, -1.0)).items():
        factors = tuple(names[two[i]] for i in chosen)
        label = f"{instead(design, factors[0])}" if len(factors) == 1 else " × ".join(factors)
        family = "primary" if len(factors) == 1 else "secondary"
        found.append(Contrast(factors, label, weights, family, 2.0 if len(factors) == 2 else None))
    return found


def instead(design: Complete, factor: str) -> str:
    """`lenient instead of strict`, with the setting's name where the levels do not tell it."""
    low, high = design.settings[factor]
    return told(factor, low, high)


def told(setting: str, low: str, high: str) -> str:
    plain = setting in ("filter", "finetune", "model", "dataset", "prompt", "reward")
    return f"{high} instead of {low}" if plain else f"{setting} {high} instead of {low}"


def pairwise(design: Complete) -> list[Contrast]:
    """All pairs of levels of settings with three or more, averaged over the levels of the others."""
    found = []
    unlike = yardsticks(design.settings)
    for i, (name, levels) in enumerate(design.settings.items()):
        for low, high in combinations(levels, 2) if len(levels) > 2 and name not in unlike else ():
            chosen = [(cell[i] == high) - (cell[i] == low) for cell in design.cells.values()]
            weights = np.array(chosen, float) * len(levels) / len(design.cells)
            found.append(Contrast((name,), told(name, low, high), weights, "exploratory"))
    return found


@dataclass(frozen=True)
class Tests:
    """Of one sweep, or of several at once: contrasts' values (..., effects, questions, seeds), means and p-values.

    `flips` are the p-values by sign flips over questions. Both are not adjusted yet.
    """

    values: Array
    means: Crossings
    flips: Array


def test(
    contrasts: Sequence[Contrast], tables: Array, pool: Pool | None = None, resamples: int = resampling.DRAWS
) -> Tests:
    """Contrasts of `tables` (..., cells, questions, seeds) against 0. `pool` is that of `estimate`."""
    weights = np.stack([one.weights for one in contrasts])
    values = np.einsum("ec,...cqs->...eqs", weights, tables)
    by_question = values.mean(axis=-1)
    flips = resampling.sign_flip(by_question.reshape(-1, by_question.shape[-1]), resamples)
    means = crossing.crossings(values, BOUND, _pool(weights, tables, pool))
    return Tests(values, means, flips.reshape(by_question.shape[:-1]))


def _pool(weights: Array, tables: Array, within: Pool | None) -> Pool | None:
    """How seeds differ in each contrast, from all contrasts of its kind.

    Those that weigh all cells alike are pooled, as main effects and interactions do. One that is alone of its kind, or
    leaves out cells, takes the variance between seeds within cells.
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
    """p-values adjusted within each family."""
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
    """The contrasts' effects on an outcome, of which `tables` has the values (cells, questions, seeds) in %.

    p-values are adjusted within each family (Holm). `groups` are those of the questions, if they have any. `pool` says
    how seeds differ within a cell, where more cells than these tell it.
    """
    tests = test(contrasts, tables, pool)
    values, flips = tests.values, tests.flips
    draws = resampling.pigeonhole(values)
    reach = resampling.simultaneous(draws, tests.means.value) / float(statistics.quantile(np.inf))
    crossed = [tests.means.at(i) for i in range(len(contrasts))]
    effects = []
    for i, (one, found) in enumerate(zip(contrasts, crossed, strict=True)):
        low, high = resampling.percentiles(draws[:, i])
        interval = within(Interval(found.value, found.low, found.high, found.method))
        together = _scaled(found, max(1.0, reach))
        effects.append(
            Effect(
                factors=one.factors,
                label=one.label,
                outcome=outcome,
                n=n,
                interval=interval,
                raw=None if one.raw is None else one.raw * found.value,
                se_question=found.se_question,
                se_seed=found.se_seed,
                se_clustered=_clustered(values[i].mean(axis=1), groups),
                df=found.df,
                bootstrap=Interval(float(draws[:, i].mean()), low, high, "pigeonhole bootstrap, percentiles"),
                agree=_agree(found, high - low),
                simultaneous=together,
                p=float(flips[i]),
                p_adjusted=1.0,
                p_crossed=found.p,
                p_crossed_adjusted=1.0,
                family=one.family,
                detectable=statistics.detectable(found.se, found.df) if found.se else _three(tables.shape[1]),
                needed=_needed(values[i].mean(axis=1)),
                questions=tables.shape[1],
                seeds=tables.shape[2],
                samples=samples,
                sentence="",
            )
        )
    return Estimates(adjusted(effects), tuple(found.parts for found in crossed), draws)


def _clustered(values: Array, groups: Sequence[str] | None) -> float | None:
    return None if groups is None else statistics.paired(values, np.zeros(len(values)), groups, BOUND).se


def _needed(values: Array) -> dict[str, int]:
    """Questions by what they tell, in pp, of as many seeds and samples as here."""
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    return {f"{delta:g}": statistics.questions_needed(delta, variance) for delta in ASKED} if variance else {}


def adjusted(
    effects: Sequence[Effect], rule: Callable[[Sequence[float]], list[float]] = resampling.holm
) -> tuple[Effect, ...]:
    """With p-values adjusted within each family, and their sentences."""
    families = [effect.family for effect in effects]
    flips = adjust(families, [one.p for one in effects], rule)
    crossed = adjust(families, [one.p_crossed for one in effects], rule)
    found = [
        replace(one, p_adjusted=p, p_crossed_adjusted=both)
        for one, p, both in zip(effects, flips, crossed, strict=True)
    ]
    return tuple(replace(one, sentence=sentence(one)) for one in found)


def _scaled(found: crossing.Crossed, reach: float) -> Interval:
    if found.low is None or found.high is None:
        return Interval(found.value, None, None, found.method)
    low, high = found.value + reach * (found.low - found.value), found.value + reach * (found.high - found.value)
    return within(Interval(found.value, low, high, "simultaneous: max-|t| over all effects on the outcome"))


def within(interval: Interval, lowest: float = -BOUND) -> Interval:
    """With bounds that an accuracy, or a difference of accuracies, can have."""
    if interval.low is None or interval.high is None:
        return interval
    return replace(interval, low=max(lowest, interval.low), high=min(BOUND, interval.high))


def _agree(found: crossing.Crossed, bootstrap: float) -> bool:
    """Whether the bootstrap's interval is within a fifth of the width of the other; constant data agree."""
    width = 2 * statistics.quantile(found.df) * found.se
    return abs(width - bootstrap) <= WIDTHS_AGREE * width


def _three(questions: int) -> float:
    return BOUND * min(1.0, 3 / questions)
