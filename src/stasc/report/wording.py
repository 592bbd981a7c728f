"""What is said in sentences. None says `significant`: an estimate has its interval, its p, its seeds and questions."""

from __future__ import annotations

from collections.abc import Sequence

from stasc.report.records import Cell, Effect, Interval
from stasc.report.words import interval_text, listed, number, p_text
from stasc.units import counted

FEW_SEEDS = 5  # fewer hardly tell how much training runs differ
LEVEL = 0.05  # of p-values, adjusted
OUTCOMES = {"correction": "final correction accuracy", "gain": "correction gain"}


def effect_text(interval: Interval) -> str:
    """`-3.1 pp [-5.9, -0.4]`."""
    text = interval_text(interval, signed=True, unit="pp")
    return text if interval.low is not None else f"{text} (no interval)"


def size_text(effect: Effect) -> str:
    """How much there is of what: `3 seeds, 162 questions`."""
    each = f", {effect.samples} samples each" if effect.samples > 1 else ""
    return f"{counted(effect.seeds, 'seed')}, {counted(effect.questions, 'question')}{each}"


def excludes_zero(interval: Interval) -> bool:
    return interval.low is not None and interval.high is not None and not interval.low <= 0 <= interval.high


def sentence(effect: Effect) -> str:
    """What an effect is, in one sentence."""
    raw = f" (difference of differences {number(effect.raw, signed=True)} pp)" if effect.raw is not None else ""
    told = f"{effect.label}: {effect_text(effect.interval)}{raw}"
    if effect.outcome == "gain":
        told += " of correction gain"
    told += f", adjusted p {p_text(effect.p_adjusted)}"
    if effect.seeds == 1:
        return f"{told}, {size_text(effect)}; conditional on one training run of each variant"
    told += f" for these training runs and {p_text(effect.p_crossed_adjusted)} for others, {size_text(effect)}"
    if not effect.se_seed and effect.seeds < FEW_SEEDS:
        return f"{told}; it was not seen to differ between seeds, which {effect.seeds} of them hardly tell"
    return told


def surely(effect: Effect) -> bool:
    """Whether an effect can be told from 0, by its interval and by p-values adjusted for the number of choices.

    With several seeds, one of these p-values counts them as samples, as the interval does.
    """
    return sure(effect.interval, effect.p_adjusted, effect.p_crossed_adjusted, effect.seeds)


def sure(interval: Interval, p: float, p_crossed: float, seeds: int) -> bool:
    """The rule by which an effect is called sure."""
    counted_seeds = seeds == 1 or p_crossed < LEVEL
    return excludes_zero(interval) and p < LEVEL and counted_seeds


def headline(effects: Sequence[Effect], interactions: Sequence[Effect] = (), held: Sequence[str] = ()) -> str:
    """The answer, from the choices' effects on final correction accuracy, the largest first.

    `held` are settings of which the design has one level only, though the sweep has others.
    """
    only = f"With {' and '.join(held)} alone: " if held else ""
    crossing = [effect for effect in interactions if surely(effect)]
    strongest = max(crossing, key=lambda effect: abs(effect.interval.value), default=None)
    sure = next((effect for effect in effects if surely(effect)), None)
    told = only + _main(effects, sure)
    if strongest and (sure is None or abs(strongest.interval.value) > abs(sure.interval.value)):
        return f"{told} But {listed(strongest.factors)} depend on each other: {sentence(strongest)}."
    return told


def _main(effects: Sequence[Effect], sure: Effect | None) -> str:
    """About the first of the effects, and about the first that is sure."""
    first, found = effects[0], f"{sentence(effects[0])}."
    choice, outcome = first.factors[0], OUTCOMES["correction"]
    most = " most" if len(effects) > 1 else ""
    among = " among these training runs" if first.seeds == 1 else ""
    if sure is first:
        return f"{choice} matters{most} for {outcome}{among}: {found}"
    if sure:
        return (
            f"{sure.factors[0]} matters for {outcome}{among}: {sentence(sure)}. The largest estimate can't be told "
            f"from 0: {found}"
        )
    if excludes_zero(first.interval) and first.p_adjusted >= LEVEL:
        return f"{choice} may matter{most} for {outcome}{among}, not surely once all choices are allowed for: {found}"
    if first.p_adjusted < LEVEL:
        return f"{choice} matters{most} for {outcome} among these training runs, not surely in others: {found}"
    if not first.interval.value:
        return f"No choice made a difference to {outcome}{among}: {found}"
    return f"No choice's effect on {outcome} can be told from 0{among}. The largest estimate: {found}"


def fixed(declared: Sequence[int] | None) -> str:
    """That the number of seeds is fixed beforehand, why, and what it was then."""
    told = f" This sweep's first command declared {counted(len(declared), 'seed')}." if declared else ""
    return (
        "They hold if the number of seeds was fixed beforehand: adding seeds until a choice looks sure finds effects "
        f"that are not there.{told}"
    )


def unranked(settings: Sequence[str]) -> str:
    """Why variants that differ in these settings are not compared."""
    does, them = ("decides", "it") if len(settings) == 1 else ("decide", "them")
    return (
        f"{listed(settings)} also {does} which answers are right, so variants that differ in {them} are measured "
        "differently and not ranked."
    )


def highest(cell: Cell, variants: int) -> str:
    """What the variant of the highest accuracy reaches, or the only one, in the answers that it is trained to give."""
    sizes = f"{counted(cell.questions, 'question')}, {counted(len(cell.seeds), 'seed')}"
    answers = "initial answers" if cell.trains == "initial" else "corrections"
    reached = f"{answers} are {interval_text(cell.reached)} % right"
    if not cell.n:
        return f"{cell.name}, without training: {reached}, {sizes}."
    return (
        f"{cell.name}{', the highest of the variants,' if variants > 1 else ''} after {counted(cell.n, 'iteration')}: "
        f"{reached}, {effect_text(cell.over_correction)} over M_0's corrections and "
        f"{effect_text(cell.over_initial)} over M_0's initial answers, {sizes}."
    )


def certainty(effects: Sequence[Effect], share: float, draws: int) -> str:
    """How sure it is that the first of the effects is the largest, by the share of bootstrap draws.

    Few seeds, drawn again and again, say too little of others, so then the share is left out.
    """
    first, second = effects[0], effects[1]
    if not first.interval.value:
        return ""
    following = f"{second.factors[0]}: {second.label} {effect_text(second.interval)}."
    if 1 < first.seeds < FEW_SEEDS:
        return f"Next is {following}"
    drawn = "questions and seeds" if first.seeds > 1 else "questions"
    percent = "more than 99.9" if share > 0.999 else number(100 * share)
    return (
        f"{first.factors[0]} has the largest effect in {percent} % of {draws:,} bootstrap draws of {drawn}; next is "
        f"{following}"
    )


def power(effects: Sequence[Effect], cells: int, doubled: tuple[float, float, float] | None) -> str:
    """What the design could have detected, and what would help.

    `doubled` are standard errors of the first effect: as it is, with twice the questions, and with twice the seeds.
    """
    first = effects[0]
    sizes = sorted(effect.detectable for effect in effects)
    span = " to ".join(dict.fromkeys(number(size) for size in (sizes[0], sizes[-1])))
    told = [
        f"With {counted(cells, 'variant')}, {size_text(first)}, the interval of a choice's effect leaves out 0 four "
        f"times in five if the effect is {span} pp, and less often if it is smaller.",
    ]
    if first.se_seed is None:
        told.append("That holds for these training runs; how much others differ takes more seeds to tell.")
    elif doubled:
        now, questions, seeds = map(number, doubled)
        told.append(
            f"The standard error for {first.factors[0]} is {now} pp; twice the questions would make it {questions} pp, "
            f"twice the seeds {seeds} pp."
        )
    if first.seeds == 2:
        told.append("Two seeds hardly say how much training runs differ, so these figures are rough.")
    if first.needed:
        needed = ", ".join(f"{size} pp about {float(f'{count:.2g}'):,.0f}" for size, count in first.needed.items())
        told.append(f"Questions that it takes to tell so much in these training runs alone: {needed}.")
    return " ".join(told)


def worth(cell: Cell) -> str:
    """What a variant's corrections are worth, against the answers that they correct; of one run, with an exact test."""
    told = f"Its last corrections against the answers that they correct: {effect_text(cell.gain)}"
    if len(cell.seeds) > 1 or not cell.changes:
        return f"{told}."
    (change,) = cell.changes.values()
    test = f"McNemar's exact p {p_text(change.p)}" if change.can_reach else "too few for any test to reach p < .05"
    return f"{told}; {counted(change.better, 'answer')} mended and {change.worse} spoiled, {test}."
