"""Analyses a sweep: which choice matters, how certain that is, and what was excluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from stasc.report import design, wording
from stasc.report.analysis import baselines, cells, differences, effects, notes
from stasc.report.analysis.cells import Row
from stasc.report.analysis.effects import Contrast, Estimates
from stasc.report.design import Complete
from stasc.report.provenance import provenance
from stasc.report.records import Analysis, Cell, Effect, Interval, Sweep
from stasc.report.statistics import crossing, resampling
from stasc.report.statistics.crossing import Pool
from stasc.report.statistics.intervals import MIN_CLUSTERS
from stasc.units import counted


def analyse(sweep: Sweep) -> Analysis:
    """Analyses the runs of a sweep, or a single run.

    Raises: ValueError if no run is complete.
    """
    done = [run for run in (*sweep.runs, *sweep.baselines) if run.complete]
    if not done:
        states = "; ".join(f"{run.name}: {run.status}" for run in (*sweep.runs, *sweep.baselines))
        raise ValueError(f"{sweep.folder}: no run is complete ({states}); run the same command again to resume them")
    n = _last(sweep)
    questions = pd.Index(done[0].outcomes["question"].unique())
    by_cell = {name: [run for run in sweep.runs if run.cell == name] for name in sweep.cells}
    found_rows = (cells.row(name, sweep.cells[name], "variant", runs, questions, n) for name, runs in by_cell.items())
    variants = [row for row in found_rows if row]
    m_0s = baselines.kinds(variants, sweep.settings)
    beside = baselines.baselines(sweep.baselines, questions, n)
    others = [*(baselines.zero_shot(m_0s) if n else []), *beside.rows]
    groups = differences.groups(questions)
    clusters = groups if groups and len({*groups}) >= MIN_CLUSTERS else None
    full = design.complete(sweep.settings, sweep.cells, sweep.runs)
    pools = cells.Pools([*variants, *others])
    tables = _Tables(full, {row.name: row for row in variants}, clusters, pools)
    found = {outcome: tables.factorial(outcome, n) for outcome in wording.OUTCOMES} if full else {}
    main = _main(found.get("correction"))
    curves = {
        row.name: tuple(cells.cell(row, i, pools) for i in range(_at(row, n) + 1)) for row in (*variants, *others)
    }
    at_end = [curve[-1] for curve in curves.values()]
    every = tuple(effect for one in found.values() if one for effect in one.effects)
    return Analysis(
        name=sweep.name,
        declared=_declared(n, main, sweep),
        n=n,
        headline=_headline(sweep, full, main, found.get("correction"), at_end),
        certainty=_certainty(found.get("correction"), main, at_end),
        power=_power(found["correction"], main, full) if full and main else "",
        effects=every,
        trajectories=tables.trajectories(n),
        comparisons=tables.comparisons(n),
        differences=differences.differences([(row, _at(row, n)) for row in (*variants, *others)], clusters, pools),
        cells=tuple(at_end),
        curves=curves,
        optimistic={row.name: _optimistic(curves[row.name]) for row in variants if n},
        ceilings=beside.ceilings,
        noise_floor=baselines.noise_floor(m_0s),
        notes=(
            *notes.measured(sweep),
            *notes.states(sweep),
            *notes.added(sweep),
            *notes.left_out(sweep, full),
            *notes.unlike(sweep),
            *notes.trained(at_end),
            *notes.alone(at_end),
            *notes.checked(every),
            *notes.grouped(groups, every),
            *beside.notes,
            *sweep.notes,
        ),
        provenance=provenance(sweep),
    )


def _last(sweep: Sweep) -> int:
    """Returns the last iteration that every run was asked for."""
    asked = [int(run.settings["iterations"]) for run in sweep.runs if run.complete]
    return min(asked or [max(int(run.settings["iterations"]) for run in sweep.baselines if run.complete)])


def _declared(n: int, main: Sequence[Effect], sweep: Sweep) -> str:
    """Describes the iteration and the tests that were chosen in advance."""
    if n == 0:
        return "There was no training: all figures are of M_0."
    text = (
        f"All variants are compared at the last iteration that was asked for, n = {n}, whatever the curves look like."
    )
    if not main:
        return text
    tests = "With one seed, p-values (sign flips over questions) and intervals are conditional on these training runs."
    if main[0].seeds > 1:
        tests = (
            "p-values over questions come from sign flips and are conditional on these training runs; p-values over "
            "questions and seeds, and intervals, also hold for new training runs."
        )
    declared = sweep.declared and f" This sweep's first command declared {counted(len(sweep.declared), 'seed')}."
    return (
        f"{text} The primary analysis is the choices' main effects on final correction accuracy, with Holm-adjusted "
        f"p-values; interactions and the correction gain are adjusted separately. {tests} These results assume that "
        "the number of seeds was fixed in advance: adding seeds until an effect appears produces false positives."
        f"{declared or ''}"
    )


def _at(row: Row, n: int) -> int:
    """Returns the iteration at which a row is compared: 0 for zero-shot and for a baseline without training."""
    return n if row.kind == "variant" or row.trained else 0


@dataclass(frozen=True)
class _Tables:
    """The complete design with the variants' rows, the clusters of the questions, and the pooled seed variances."""

    full: Complete | None
    rows: Mapping[str, Row]
    clusters: Sequence[str] | None
    pools: cells.Pools

    def factorial(self, outcome: str, n: int) -> Estimates | None:
        """Estimates main effects and interactions."""
        assert self.full
        contrasts = effects.factorial(self.full)
        return self._in_design(contrasts, outcome, n) if contrasts else None

    def trajectories(self, n: int) -> tuple[Effect, ...]:
        """Estimates the main effects at every iteration: exploratory, so adjusted for the false discovery rate."""
        contrasts = effects.factorial(self.full) if self.full else []
        main = [replace(one, family="exploratory") for one in contrasts if len(one.factors) == 1]
        if not main:
            return ()
        found = [effect for i in range(1, n + 1) for effect in self._in_design(main, "correction", i).effects]
        return effects.adjusted(found, resampling.benjamini_hochberg)

    def comparisons(self, n: int) -> tuple[Effect, ...]:
        """Compares levels of settings with three or more, and cells outside the design that differ in one setting."""
        found: list[Effect] = []
        if self.full and (contrasts := effects.pairwise(self.full)):
            found += self._in_design(contrasts, "correction", n).effects
        for one, other in combinations(self.rows.values(), 2):
            differing = [name for name in one.levels if one.levels[name] != other.levels[name]]
            seeds = [run.seed for run in one.runs if run.seed in {run.seed for run in other.runs}]
            within = self.full and {one.name, other.name} <= {*self.full.cells}
            if len(differing) == 1 and seeds and not within and not design.scoring(differing):
                label = f"{other.name} instead of {one.name}"
                contrast = Contrast((differing[0],), label, np.array([-1.0, 1.0]), "exploratory")
                pool = self.pools.within(one, "correction", n)
                found += self._estimate([contrast], [one, other], seeds, "correction", n, pool).effects
        none = "not computed for comparisons"
        alone = [replace(one, simultaneous=Interval(one.interval.value, None, None, none)) for one in found]
        return effects.adjusted(alone)

    def _in_design(self, contrasts: Sequence[Contrast], outcome: str, n: int) -> Estimates:
        assert self.full
        return self._estimate(contrasts, [self.rows[name] for name in self.full.cells], self.full.seeds, outcome, n)

    def _estimate(
        self,
        contrasts: Sequence[Contrast],
        rows: Sequence[Row],
        seeds: Sequence[int],
        outcome: str,
        n: int,
        pool: Pool | None = None,
    ) -> Estimates:
        tables = [row.table(outcome, n)[:, [i for i, run in enumerate(row.runs) if run.seed in seeds]] for row in rows]
        samples = min(row.scores[0].samples for row in rows)
        return effects.estimate(contrasts, np.stack(tables), outcome, n, samples, self.clusters, pool)


def _main(found: Estimates | None) -> list[Effect]:
    """Returns the main effects on final correction accuracy, the largest first."""
    main = [effect for effect in found.effects if effect.family == "primary"] if found else []
    return sorted(main, key=lambda effect: abs(effect.interval.value), reverse=True)


def _headline(
    sweep: Sweep, full: Complete | None, main: Sequence[Effect], found: Estimates | None, at_end: Sequence[Cell]
) -> str:
    unlike = design.scoring(sweep.settings)
    if main and found and full:
        crossing = [effect for effect in found.effects if effect.family == "secondary"]
        held = [f"{name}={levels[0]}" for name, levels in full.settings.items() if len(levels) == 1]
        text = wording.headline(main, crossing, held)
        return f"{text} {wording.unranked(unlike)}" if unlike else text
    variants = [cell for cell in at_end if cell.kind == "variant"]
    if unlike and len(variants) > 1:
        return wording.unranked(unlike)
    return wording.highest(max(variants or at_end, key=lambda cell: cell.reached.value), len(variants))


def _certainty(found: Estimates | None, main: Sequence[Effect], at_end: Sequence[Cell]) -> str:
    """Describes how certain the largest effect is, or for a single variant, the gain of its corrections."""
    variants = [cell for cell in at_end if cell.kind == "variant"]
    if len(variants) == 1:
        return wording.worth(variants[0])
    if not found or len(main) < 2:
        return ""
    columns = [i for i, effect in enumerate(found.effects) if effect.family == "primary"]
    sizes = np.abs(found.draws[:, columns])
    first = [found.effects[i].factors for i in columns].index(main[0].factors)
    return wording.certainty(main, float((sizes.argmax(axis=1) == first).mean()), len(sizes))


def _power(found: Estimates | None, main: Sequence[Effect], full: Complete) -> str:
    assert found
    parts = found.parts[found.effects.index(main[0])]
    n, seeds = main[0].questions, main[0].seeds
    sizes = ((n, seeds), (2 * n, seeds), (n, 2 * seeds))
    now, questions, more = (crossing.foreseen(parts, *size) for size in sizes)
    return wording.power(main, len(full.cells), (now, questions, more) if parts.residual else None)


def _optimistic(curve: Sequence[Cell]) -> Interval:
    best = max(curve[1:], key=lambda cell: cell.correction.value)
    method = f"optimistic: the best of {counted(len(curve) - 1, 'iteration')} on the test questions, n = {best.n}"
    return replace(best.correction, method=method)
