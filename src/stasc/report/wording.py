"""Numbers in sentences. None says `significant`: an estimate has its interval, its p, its seeds and its questions."""

from __future__ import annotations

from collections.abc import Sequence

from stasc.report.records import Effect, Interval
from stasc.units import counted

OUTCOMES = {"correction": "final correction accuracy", "gain": "correction gain"}


def points(value: float) -> str:
    """With a sign; zero is +0.0."""
    return f"{round(value, 1) + 0.0:+.1f}"


def interval_text(interval: Interval) -> str:
    """`-3.1 pp [-5.9, -0.4]`."""
    if interval.low is None or interval.high is None:
        return f"{points(interval.value)} pp (no interval)"
    return f"{points(interval.value)} pp [{points(interval.low)}, {points(interval.high)}]"


def share_text(interval: Interval) -> str:
    """`40.1 [32.9, 47.8]`, in percent."""
    if interval.low is None or interval.high is None:
        return f"{interval.value:.1f}"
    return f"{interval.value:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def size_text(effect: Effect) -> str:
    """How much there is of what: `3 seeds, 162 questions`."""
    each = f", {effect.samples} samples each" if effect.samples > 1 else ""
    return f"{counted(effect.seeds, 'seed')}, {counted(effect.questions, 'question')}{each}"


def excludes_zero(interval: Interval) -> bool:
    return interval.low is not None and interval.high is not None and not interval.low <= 0 <= interval.high


def sentence(effect: Effect) -> str:
    """What an effect is, in one sentence."""
    raw = f" (difference of differences {points(effect.raw)} pp)" if effect.raw is not None else ""
    told = f"{effect.label}: {interval_text(effect.interval)}{raw}"
    if effect.outcome == "gain":
        told += " of correction gain"
    told += f", adjusted p {p_text(effect.p_adjusted)}, {size_text(effect)}"
    if effect.seeds == 1:
        return f"{told}; conditional on one training run of each variant"
    if effect.p_adjusted < 0.05 and not excludes_zero(effect.interval):
        return f"{told}; p is for these training runs, while the interval counts others too, and includes 0"
    return told


def surely(effect: Effect) -> bool:
    """Whether an effect can be told from 0, by its interval and by p-values adjusted for the number of choices.

    With several seeds, one of these p-values counts them as samples, as the interval does.
    """
    counted_seeds = effect.seeds == 1 or effect.p_crossed_adjusted < 0.05
    return excludes_zero(effect.interval) and effect.p_adjusted < 0.05 and counted_seeds


def headline(effects: Sequence[Effect], interactions: Sequence[Effect] = (), held: Sequence[str] = ()) -> str:
    """The answer, from the choices' effects on final correction accuracy, the largest first.

    `held` are settings of which the design has one level only, though the sweep has others.
    """
    only = f"With {' and '.join(held)} alone: " if held else ""
    crossing = [effect for effect in interactions if surely(effect)]
    strongest = max(crossing, key=lambda effect: abs(effect.interval.value), default=None)
    if strongest and abs(strongest.interval.value) > abs(effects[0].interval.value):
        return f"{only}{_main(effects)} But it depends on another choice: {sentence(strongest)}."
    return only + _main(effects)


def _main(effects: Sequence[Effect]) -> str:
    first, found = effects[0], f"{sentence(effects[0])}."
    choice, outcome = first.factors[0], OUTCOMES["correction"]
    most = " most" if len(effects) > 1 else ""
    among = " among these training runs" if first.seeds == 1 else ""
    sure = next((effect for effect in effects if surely(effect)), None)
    if sure is first:
        return f"{choice} matters{most} for {outcome}{among}: {found}"
    if sure:
        return (
            f"{sure.factors[0]} matters for {outcome}{among}: {sentence(sure)}. The largest estimate can't be told "
            f"from 0: {found}"
        )
    if excludes_zero(first.interval) and first.p_adjusted >= 0.05:
        return f"{choice} may matter{most} for {outcome}{among}, not surely once all choices are allowed for: {found}"
    if first.p_adjusted < 0.05:
        return f"{choice} matters{most} for {outcome} among these training runs, not surely in others: {found}"
    return f"No choice's effect on {outcome} can be told from 0{among}. The largest estimate: {found}"


def certainty(effects: Sequence[Effect], share: float, draws: int) -> str:
    """How sure it is that the first of the effects is the largest, by the share of bootstrap draws."""
    first, second = effects[0], effects[1]
    drawn = "questions and seeds" if first.seeds > 1 else "questions"
    return (
        f"{first.factors[0]} has the largest effect in {100 * share:.0f} % of {draws:,} bootstrap draws of {drawn}; "
        f"next is {second.factors[0]}: {second.label} {interval_text(second.interval)}."
    )


def power(effects: Sequence[Effect], cells: int, doubled: tuple[float, float] | None) -> str:
    """What the design could have detected, and for the first effect, what twice the questions or the seeds could."""
    first = effects[0]
    sizes = sorted(effect.detectable for effect in effects)
    span = f"{sizes[0]:.1f}" if f"{sizes[0]:.1f}" == f"{sizes[-1]:.1f}" else f"{sizes[0]:.1f} to {sizes[-1]:.1f}"
    told = (
        f"With {counted(cells, 'variant')}, {size_text(first)}, a choice's effect is told from 0 four times in five if "
        f"it is {span} pp."
    )
    if first.se_seed is None or not doubled:
        return f"{told} That holds for these training runs; how much others differ takes more seeds to tell."
    return (
        f"{told} For {first.factors[0]}, that is {first.detectable:.1f} pp; twice the questions would make it "
        f"{doubled[0]:.1f} pp, twice the seeds {doubled[1]:.1f} pp (standard error: {first.se_question:.1f} pp from "
        f"questions, {first.se_seed:.1f} pp from seeds)."
    )
