"""Simulates the coverage of the report's intervals, and how often it calls a choice sure when nothing matters.

Synthetic sweeps without any true effect go through the report's own estimates. `python tests/simulation.py` prints a
table for all designs, which takes half an hour on one core; the tests cover a part of it.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stasc.report import wording
from stasc.report.analysis import effects
from stasc.report.design import Complete
from stasc.report.records import Interval
from stasc.report.statistics import crossing

DESIGNS = {"2 levels": (2,), "3 levels": (3,), "2^2": (2, 2), "2^3": (2, 2, 2), "2^4": (2, 2, 2, 2)}
NOISES = ("independent", "shared", "unequal")
COVERAGE = (0.935, 0.985)
FALSE_SURE = 0.05
RESAMPLES = 399  # sign flips: enough for a level of 0.05
AT_ONCE = 100  # sweeps, which take tens of megabytes
SHARED_NOISE = 0.5  # the share of answers that variants draw alike, as they share sampling noise


@dataclass(frozen=True)
class Setting:
    """A synthetic sweep. `sd` is the standard deviation of training runs' accuracy, in percentage points.

    `noise` is `independent`; or `shared`: runs at a level of the first factor (with one factor, all runs of a seed)
    share half of its variance, like runs that share stages; or `unequal`: three times as large in some variants.
    """

    design: str
    seeds: int
    sd: float
    questions: int
    noise: str = "independent"


@dataclass(frozen=True)
class Result:
    """Coverage by effect and by variant (`cells`), and shares of sweeps with a false effect or interaction."""

    setting: Setting
    sweeps: int
    coverage: NDArray[np.float64]
    cells: NDArray[np.float64]
    sure: float
    crossing: float

    def misses(self) -> list[str]:
        """Returns the bounds that do not hold, without a tolerance for the number of sweeps."""
        low, high = COVERAGE
        return [
            told
            for told, wrong in (
                ("coverage too low", self.coverage.min() < low),
                ("coverage too high", self.coverage.mean() > high),
                ("coverage of a variant too low", self.cells.min() < low),
                ("falsely sure", self.sure > FALSE_SURE),
                ("falsely sure of an interaction", self.crossing > FALSE_SURE),
            )
            if wrong
        ]


def settings(
    designs: Sequence[str] = tuple(DESIGNS),
    seeds: Sequence[int] = (2, 3, 5, 8),
    sds: Sequence[float] = (0, 2, 5, 7),
    questions: Sequence[int] = (50, 200),
    noises: Sequence[str] = NOISES,
) -> Iterator[Setting]:
    """Yields all combinations. Runs without variation have one kind of noise."""
    for design, n, count, sd, noise in itertools.product(designs, questions, seeds, sds, noises):
        if sd or noise == "independent":
            yield Setting(design, count, sd, n, noise)


def simulate(setting: Setting, sweeps: int, seed: int = 0) -> Result:
    """Analyses sweeps without a true effect."""
    random = np.random.default_rng((seed, *repr(setting).encode()))
    contrasts = _contrasts(setting)
    covered, held, called = [], [], []
    for begin in range(0, sweeps, AT_ONCE):
        tables = 100 * _answers(random, setting, min(AT_ONCE, sweeps - begin))
        tests, sure = _sure(contrasts, tables)
        covered.append((tests.means.low <= 0) & (tests.means.high >= 0))
        called.append(sure)
        pool = crossing.pooled_within([*np.moveaxis(tables, 1, 0)], "variants")
        ends = [crossing.crossings(tables[:, i], effects.BOUND, pool) for i in (0, -1)]
        held.append(np.stack([(one.low <= 50) & (one.high >= 50) for one in ends], axis=1))
    crossings = np.array([one.family == "secondary" for one in contrasts])
    shares = (float(np.concatenate(called)[:, chosen].any(axis=1).mean()) for chosen in (~crossings, crossings))
    return Result(setting, sweeps, np.concatenate(covered).mean(axis=0), np.concatenate(held).mean(axis=0), *shares)


def stopping(setting: Setting, sweeps: int, seed: int = 0) -> float:
    """Returns how often a main effect is falsely called sure if seeds are added, from two on, until one is."""
    random = np.random.default_rng((seed, *repr(setting).encode()))
    contrasts = [one for one in _contrasts(setting) if one.family != "secondary"]
    found = []
    for begin in range(0, sweeps, AT_ONCE):
        tables = 100 * _answers(random, setting, min(AT_ONCE, sweeps - begin))
        looks = [_sure(contrasts, tables[..., :seeds])[1].any(axis=1) for seeds in range(2, setting.seeds + 1)]
        found.append(np.any(looks, axis=0))
    return float(np.concatenate(found).mean())


def _sure(
    contrasts: Sequence[effects.Contrast], tables: NDArray[np.float64]
) -> tuple[effects.Tests, NDArray[np.bool_]]:
    """Returns the report's tests of sweeps, and which effects it calls sure, (sweeps, effects)."""
    tests, families = effects.test(contrasts, tables, resamples=RESAMPLES), [one.family for one in contrasts]
    called = []
    for low, high, p, crossed in zip(tests.means.low, tests.means.high, tests.flips, tests.means.p, strict=True):
        bounds = [effects.clipped(Interval(0.0, *pair, "")) for pair in zip(low, high, strict=True)]
        adjusted = effects.adjust(families, [*p]), effects.adjust(families, [*crossed])
        called.append([wording.sure(*one, tables.shape[-1]) for one in zip(bounds, *adjusted, strict=True)])
    return tests, np.array(called)


def _contrasts(setting: Setting) -> list[effects.Contrast]:
    full = _complete(setting)
    return [*effects.factorial(full), *effects.pairwise(full)]


def _complete(setting: Setting) -> Complete:
    levels = {f"choice{i}": tuple(map(str, range(size))) for i, size in enumerate(DESIGNS[setting.design])}
    grid = {"".join(one): one for one in itertools.product(*levels.values())}
    return Complete(levels, grid, tuple(range(setting.seeds)), {})


def _answers(random: np.random.Generator, setting: Setting, sweeps: int) -> NDArray[np.float64]:
    """Draws which answers are right, (sweeps, variants, questions, seeds), with an expected accuracy of one half."""
    sizes, n, seeds = DESIGNS[setting.design], setting.questions, setting.seeds
    count = math.prod(sizes)
    first = np.arange(count) // (count // sizes[0])  # the level of the first factor
    drift = random.normal(size=(sweeps, count, 1, seeds))
    if setting.noise == "shared":
        groups = first if len(sizes) > 1 else np.zeros(count, int)
        drift = np.sqrt(0.5) * (drift + random.normal(size=(sweeps, groups.max() + 1, 1, seeds))[:, groups])
    elif setting.noise == "unequal":
        scale = np.where(first == 0, 3.0, 1.0)
        drift = drift * (scale / np.sqrt((scale**2).mean()))[:, None, None]
    easy = random.uniform(size=(sweeps, 1, n, 1))
    shape = (sweeps, count, n, seeds)
    same = random.random(shape, dtype=np.float32) < SHARED_NOISE
    alike, own = random.random((sweeps, 1, n, seeds), dtype=np.float32), random.random(shape, dtype=np.float32)
    return (np.where(same, alike, own) < np.clip(easy + setting.sd / 100 * drift, 0, 1)).astype(float)


def line(found: Result) -> str:
    """Returns a row of the table."""
    one = found.setting
    return (
        f"{one.design:<8} {one.questions:>3} {one.seeds:>2} {one.sd:>3g} {one.noise:<11} "
        f"{found.coverage.mean():.3f} {found.coverage.min():.3f} {found.cells.min():.3f} "
        f"{100 * found.sure:5.1f} {100 * found.crossing:5.1f}  {', '.join(found.misses())}".rstrip()
    )


HEAD = "design     n  S  sd noise       mean  min   cell   sure  inter  bounds that do not hold"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=2000, help="synthetic sweeps per row")
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=[*DESIGNS])
    given = parser.parse_args()
    print(HEAD)
    for setting in settings(given.designs):
        print(line(simulate(setting, given.sweeps)), flush=True)
    print("falsely sure, if seeds are added from 2 to 8 until a main effect of 2^3 is sure, 200 questions:")
    for sd in (0, 2, 5, 7):
        print(f"sd {sd}: {100 * stopping(Setting('2^3', 8, sd, 200), given.sweeps):.1f} %", flush=True)


if __name__ == "__main__":
    main()
