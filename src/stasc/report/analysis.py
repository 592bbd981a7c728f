"""From the runs of a sweep to what the report says: which choice matters, how sure that is, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from stasc.keys import deciding
from stasc.report import cells, design, effects, resampling, scores, statistics, wording
from stasc.report.cells import Row
from stasc.report.design import Complete
from stasc.report.effects import Contrast, Estimates
from stasc.report.provenance import provenance
from stasc.report.records import Analysis, Cell, Effect, Interval, Run, Sweep
from stasc.report.statistics import Array
from stasc.units import counted

OUTCOMES = ("correction", "gain")
_OF_BASELINES = ("init", "filter", "start", "target", "pairing", "seed")  # groups that make a baseline, or a variant


def analyse(sweep: Sweep) -> Analysis:
    """What the runs of a sweep, or a single run, come to.

    Raises: ValueError if no run is complete.
    """
    done = [run for run in (*sweep.runs, *sweep.baselines) if run.complete]
    if not done:
        states = "; ".join(f"{run.name}: {run.status}" for run in (*sweep.runs, *sweep.baselines))
        raise ValueError(f"{sweep.folder}: no run is complete ({states}); run the same command again to go on")
    n = _last(sweep)
    questions = pd.Index(done[0].outcomes["question"].unique())
    variants = _variants(sweep, questions, n)
    baselines, ceilings, told = _baselines(sweep, variants, questions, n)
    full = design.complete(sweep.settings, sweep.cells, sweep.runs)
    by_name = {row.name: row for row in variants}
    found = {outcome: _effects(full, by_name, outcome, n) for outcome in OUTCOMES} if full else {}
    main = _main(found.get("correction"))
    curves = {row.name: tuple(cells.cell(row, i) for i in range(n + 1)) for row in variants}
    at_end = [curves[row.name][n] for row in variants] + [cells.cell(row, _at(row, n)) for row in baselines]
    return Analysis(
        name=sweep.name,
        declared=_declared(n, main),
        n=n,
        headline=_headline(main, found.get("correction"), _held(sweep, full), at_end, n),
        certainty=_certainty(found["correction"], main) if len(main) > 1 else "",
        power=_power(found["correction"], main, full) if full and main else "",
        effects=tuple(effect for one in found.values() if one for effect in one.effects),
        trajectories=_trajectories(full, by_name, n),
        comparisons=_comparisons(full, by_name, n),
        cells=tuple(at_end),
        curves={**curves, **{row.name: tuple(cells.cell(row, i) for i in range(_at(row, n) + 1)) for row in baselines}},
        optimistic={name: _optimistic(curve) for name, curve in curves.items() if n},
        ceilings=ceilings,
        noise_floor=_noise_floor(variants),
        notes=(*_states(sweep), *_notes(sweep, full, n), *_unlike(sweep), *_checked(found), *told, *sweep.notes),
        provenance=provenance(sweep),
    )


def _last(sweep: Sweep) -> int:
    """The iteration that counts: the last one asked for, or where runs differ, the last that all were asked for."""
    asked = [int(run.settings["iterations"]) for run in sweep.runs if run.complete]
    return min(asked or [max(int(run.settings["iterations"]) for run in sweep.baselines if run.complete)])


def _declared(n: int, main: Sequence[Effect]) -> str:
    if n == 0:
        return "There was no training: all figures are of M_0."
    told = (
        f"What counts is the last iteration that was asked for, n = {n}, the same for all variants and whatever the "
        "curves look like."
    )
    if not main:
        return told
    sampled = "questions and seeds" if main[0].seeds > 1 else "questions alone, for there is one seed"
    return (
        f"{told} Primary are the choices' main effects on final correction accuracy, with p-values adjusted for their "
        "number (Holm); interactions and the correction gain are adjusted apart. p-values are of sign flips over "
        f"questions and hold for these training runs; intervals count {sampled}."
    )


def _variants(sweep: Sweep, questions: pd.Index, n: int) -> list[Row]:
    rows = [
        cells.row(name, levels, "variant", [run for run in sweep.runs if run.cell == name], questions, n)
        for name, levels in sweep.cells.items()
    ]
    return [row for row in rows if row]


def _baselines(
    sweep: Sweep, variants: Sequence[Row], questions: pd.Index, n: int
) -> tuple[list[Row], dict[str, Interval], list[str]]:
    """The baselines' rows, what sampling M_0 holds, and how the vote was taken."""
    rows: list[Row | None] = []
    ceilings: dict[str, Interval] = {}
    told = []
    if variants and n:
        rows.append(replace(max(variants, key=lambda row: len(row.runs)), name="zero-shot", levels={}, kind="baseline"))
    for name in dict.fromkeys(run.cell for run in sweep.baselines):
        runs = [run for run in sweep.baselines if run.cell == name]
        done = [run for run in runs if run.complete]
        if done and done[0].settings["baseline"] == "self_consistency" and "vote_k" in done[0].iterations[0]["test"]:
            ceilings = _ceilings(done, questions)
            ks = dict.fromkeys(str(run.iterations[0]["test"]["vote_k"]) for run in done)
            told.append(
                f"{name} is the majority of {' or '.join(ks)} initial answers of M_0, which have about as many tokens "
                "as an initial answer and its correction"
            )
            voted = cells.row(name, {}, "baseline", [scores.voted(run) for run in done], questions, n)
            own = cells.row(name, {}, "baseline", done, questions, n)
            assert voted and own
            rows.append(replace(voted, m_0=own.scores))
            continue
        rows.append(cells.row(name, {}, "baseline", runs, questions, n))
    return [row for row in rows if row], ceilings, told


def _ceilings(runs: Sequence[Run], questions: pd.Index) -> dict[str, Interval]:
    """What sampling M_0 holds: the vote of as many answers as a correction costs, that of all, and pass@k."""
    tests = [run.iterations[0]["test"] for run in runs]
    votes = [scores.score(scores.voted(run), questions, 0).correction[0] for run in runs]
    several = tests[0]["samples"]
    every = 100 * float(np.mean([test["vote_all_acc"] for test in tests]))
    found = {
        f"vote@{tests[0]['vote_k']}": cells.accuracy(np.stack(votes, axis=1), several),
        f"vote@{several}": Interval(every, None, None, "the mean over seeds"),
    }
    passes = [scores.passes(run, questions) for run in runs]
    for k in sorted(set.intersection(*({*one} for one in passes))):
        found[f"pass@{k}"] = cells.accuracy(np.stack([one[k] for one in passes], axis=1), several)
    return found


def _at(row: Row, n: int) -> int:
    """The iteration at which a baseline counts: zero-shot, and one that does not train, at n = 0."""
    trained = any(entry["n"] for run in row.runs for entry in run.iterations)
    return n if row.kind == "variant" or (row.name != "zero-shot" and trained) else 0


def _tables(full: Complete, rows: Mapping[str, Row], outcome: str, n: int) -> Array:
    """An outcome of the cells of a design, (cells, questions, seeds)."""
    found = []
    for name in full.cells:
        row = rows[name]
        columns = [i for i, run in enumerate(row.runs) if run.seed in full.seeds]
        found.append(row.table(outcome, n)[:, columns])
    return np.stack(found)


def _samples(full: Complete, rows: Mapping[str, Row]) -> int:
    return min(rows[name].scores[0].samples for name in full.cells)


def _effects(full: Complete, rows: Mapping[str, Row], outcome: str, n: int) -> Estimates | None:
    contrasts = effects.factorial(full)
    if not contrasts:
        return None
    return effects.estimate(contrasts, _tables(full, rows, outcome, n), outcome, n, _samples(full, rows))


def _main(found: Estimates | None) -> list[Effect]:
    """The choices' effects on final correction accuracy, the largest first."""
    main = [effect for effect in found.effects if effect.family == "primary"] if found else []
    return sorted(main, key=lambda effect: abs(effect.interval.value), reverse=True)


def _trajectories(full: Complete | None, rows: Mapping[str, Row], n: int) -> tuple[Effect, ...]:
    """The choices' effects at every iteration: exploratory, so adjusted for the share of false ones."""
    main = (
        [replace(one, family="exploratory") for one in effects.factorial(full) if len(one.factors) == 1] if full else []
    )
    if not full or not main:
        return ()
    found = [
        effect
        for i in range(1, n + 1)
        for effect in effects.estimate(
            main, _tables(full, rows, "correction", i), "correction", i, _samples(full, rows)
        ).effects
    ]
    return effects.adjusted(found, resampling.benjamini_hochberg)


def _comparisons(full: Complete | None, rows: Mapping[str, Row], n: int) -> tuple[Effect, ...]:
    """Pairs of levels of settings with three or more; and pairs of cells that differ in one setting, where one of them
    is in no complete design."""
    found: list[Effect] = []
    if full and (contrasts := effects.pairwise(full)):
        samples = _samples(full, rows)
        found += effects.estimate(contrasts, _tables(full, rows, "correction", n), "correction", n, samples).effects
    for one, other in combinations(rows.values(), 2):
        differing = [name for name in one.levels if one.levels[name] != other.levels[name]]
        seeds = [run.seed for run in one.runs if run.seed in {run.seed for run in other.runs}]
        if len(differing) != 1 or not seeds or (full and {one.name, other.name} <= {*full.cells}):
            continue
        tables = [
            row.table("correction", n)[:, [i for i, run in enumerate(row.runs) if run.seed in seeds]]
            for row in (one, other)
        ]
        contrast = Contrast(
            (differing[0],), f"{other.name} instead of {one.name}", np.array([-1.0, 1.0]), "exploratory"
        )
        samples = min(one.scores[0].samples, other.scores[0].samples)
        found += effects.estimate([contrast], np.stack(tables), "correction", n, samples).effects
    alone = [
        replace(effect, simultaneous=Interval(effect.interval.value, None, None, "not computed for comparisons"))
        for effect in found
    ]
    return effects.adjusted(alone)


def _held(sweep: Sweep, full: Complete | None) -> list[str]:
    """Settings of which the design has one level of several."""
    kept = full.settings if full else {}
    return [f"{name}={kept[name][0]}" for name, levels in sweep.settings.items() if len(kept.get(name, levels)) == 1]


def _headline(
    main: Sequence[Effect], found: Estimates | None, held: Sequence[str], at_end: Sequence[Cell], n: int
) -> str:
    if main and found:
        return wording.headline(main, [effect for effect in found.effects if effect.family == "secondary"], held)
    cell = max(at_end, key=lambda cell: (cell.kind == "variant", cell.correction.value))
    one = sum(other.kind == "variant" for other in at_end) == 1
    sizes = f"{counted(cell.questions, 'question')}, {counted(len(cell.seeds), 'seed')}"
    reached = f"corrections are {wording.share_text(cell.correction)} % right"
    if not n:
        return f"{cell.name}, without training: {reached}, {sizes}."
    return (
        f"{cell.name}{'' if one else ', the highest of the variants,'} after {counted(n, 'iteration')}: "
        f"{reached}, {wording.interval_text(cell.over_correction)} over M_0's corrections and "
        f"{wording.interval_text(cell.over_initial)} over M_0's initial answers, {sizes}."
    )


def _certainty(found: Estimates | None, main: Sequence[Effect]) -> str:
    assert found
    columns = [i for i, effect in enumerate(found.effects) if effect.family == "primary"]
    sizes = np.abs(found.draws[:, columns])
    first = [found.effects[i].factors for i in columns].index(main[0].factors)
    return wording.certainty(main, float((sizes.argmax(axis=1) == first).mean()), len(sizes))


def _power(found: Estimates | None, main: Sequence[Effect], full: Complete) -> str:
    assert found
    parts = statistics.components(found.values[found.effects.index(main[0])])
    n, seeds = main[0].questions, main[0].seeds
    doubled = statistics.foreseen(parts, 2 * n, seeds), statistics.foreseen(parts, n, 2 * seeds)
    return wording.power(main, len(full.cells), doubled if parts.rest else None)


def _optimistic(curve: Sequence[Cell]) -> Interval:
    best = max(curve[1:], key=lambda cell: cell.correction.value)
    told = f"optimistic: the best of {counted(len(curve) - 1, 'iteration')} on the test questions, n = {best.n}"
    return replace(best.correction, method=told)


def _noise_floor(variants: Sequence[Row]) -> Interval | None:
    """How far two seeds of the same M_0 are apart by sampling alone: the range of 95 % of their differences.

    From the variances over seeds of each question's corrections, so it rests on all questions.
    """
    row = max(variants, key=lambda row: len(row.runs), default=None)
    if row is None or len(row.runs) < 2:
        return None
    table = row.table("correction", 0)
    reach = statistics.quantile(np.inf) * float(np.sqrt(2 * table.var(axis=1, ddof=1).sum())) / len(table)
    accuracies = table.mean(axis=0)
    method = (
        f"M_0's correction accuracy, one seed minus another: 95 % of differences lie within; among these "
        f"{len(row.runs)} seeds, at most {np.ptp(accuracies):.1f} pp"
    )
    return Interval(0.0, -reach, reach, method)


@dataclass(frozen=True)
class _State:
    """How notes call runs of a status."""

    status: str
    told: str


_STATES = (
    _State("failed", "failed"),
    _State("failed_nonfinite", "failed, as loss or gradient became infinite or NaN"),
    _State("interrupted", "was interrupted"),
    _State("unfinished", "is not finished"),
    _State("damaged", "has damaged files"),
    _State("missing", "is missing: the sweep has no such run"),
)


def _states(sweep: Sweep) -> list[str]:
    """What is wrong with runs, and those that stopped early as nothing was kept."""
    notes = []
    for run in (*sweep.runs, *sweep.baselines):
        state = next((state.told for state in _STATES if state.status == run.status), run.status)
        last = max((entry["n"] for entry in run.iterations), default=None)
        if run.status == "stopped_empty":
            notes.append(
                f"{run.cell}, seed {run.seed}, stopped after iteration {last}, as nothing was kept: later models are "
                f"the same as M_{last}, and count with its outcomes"
            )
        elif not run.complete:
            until = "" if run.status == "missing" or last is None else f", after iteration {last}"
            notes.append(f"{run.cell}, seed {run.seed}, {state}{until}" + (f" ({run.error})" if run.error else ""))
    return notes


def _notes(sweep: Sweep, full: Complete | None, n: int) -> list[str]:
    """What effects were computed from, and why not from the rest."""
    notes = []
    asked = sorted({int(run.settings["iterations"]) for run in sweep.runs if run.complete})
    if len(asked) > 1:
        notes.append(f"runs have {', '.join(map(str, asked))} iterations: all are compared at n = {n}")
    if not full or not sweep.settings:
        return notes
    for name, levels in sweep.settings.items():
        kept = full.settings[name]
        if len(kept) == 1:
            notes.append(
                f"effects are of runs with {name}={kept[0]} only, which leaves the most runs: a complete design "
                f"with {', '.join(level for level in levels if level not in kept)} too has fewer, or there is none"
            )
        elif len(kept) < len(levels):
            notes.append(f"effects leave out {name}={', '.join(level for level in levels if level not in kept)}")
        if len(kept) > 2:
            notes.append(
                f"{name} has {len(kept)} levels, so it has no effect of its own: its levels are compared pair by pair, "
                "and the effects of the others averaged over them"
            )
    seeds = sorted({run.seed for run in sweep.runs})
    if dropped := [seed for seed in seeds if seed not in full.seeds]:
        notes.append(
            f"effects are of seed{'s' if len(full.seeds) > 1 else ''} {_listed(full.seeds)}, which all "
            f"{len(full.cells)} variants have; left out: {_listed(dropped)}"
        )
    return notes


def _unlike(sweep: Sweep) -> list[str]:
    """Settings of baselines that are not those of any variant, but for what makes them baselines."""
    variants = [deciding(run.settings) for run in sweep.runs if run.complete]
    notes = []
    for name in dict.fromkeys(run.cell for run in sweep.baselines):
        run = next((run for run in sweep.baselines if run.cell == name and run.complete), None)
        if run is None or not variants:
            continue
        others = {
            setting: value
            for setting, value in deciding(run.settings).items()
            if setting.partition(".")[0] not in _OF_BASELINES
            and setting != "evaluation.n_init"
            and value not in [variant.get(setting, value) for variant in variants]
        }
        if others:
            told = ", ".join(f"{setting}={value}" for setting, value in others.items())
            notes.append(f"{name} has settings that no variant has: {told}")
    return notes


def _checked(found: Mapping[str, Estimates | None]) -> list[str]:
    """The effects whose interval the bootstrap does not confirm."""
    effects = [effect for one in found.values() if one for effect in one.effects]
    apart = [effect for effect in effects if not effect.agree]
    if not apart:
        return []
    labels = dict.fromkeys(f"{effect.label} ({wording.OUTCOMES[effect.outcome]})" for effect in apart)
    return [
        f"for {len(apart)} of {len(effects)} effects the bootstrap's interval is more than a fifth wider or narrower "
        f"than the one shown, mostly narrower as it knows no t quantile for few seeds: {'; '.join(labels)}"
    ]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
