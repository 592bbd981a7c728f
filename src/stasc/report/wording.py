"""The report's sentences and numbers: with a plain minus in sentences, a true one on the page.

No sentence says `significant`: estimates come with interval, p-values, seeds and questions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from stasc.report.records import Cell, Effect, Interval
from stasc.units import counted

FEW_SEEDS = 5  # fewer are too few to estimate how much training runs differ
LEVEL = 0.05  # significance level of adjusted p-values
OUTCOMES = {"correction": "final correction accuracy", "gain": "correction gain"}
MINUS = "−"
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours and the cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"  # titles, links
    r"|\x1b[ -/]*[0-~]?"
)
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # overrides of the writing direction


def number(value: float, *, signed: bool = False, digits: int = 1) -> str:
    """Returns a rounded number, which is never -0.0."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if signed else ''}.{digits}f}"


def bounds(interval: Interval, *, signed: bool = False) -> str:
    """Returns `[-5.9, -0.4]`, or an empty text for an interval without bounds."""
    if interval.low is None or interval.high is None:
        return ""
    return f"[{number(interval.low, signed=signed)}, {number(interval.high, signed=signed)}]"


def interval_text(interval: Interval, *, signed: bool = False, unit: str = "") -> str:
    """Returns `40.1 [32.9, 47.8]`, or with sign and unit `-3.1 pp [-5.9, -0.4]`."""
    return " ".join(filter(None, [number(interval.value, signed=signed), unit, bounds(interval, signed=signed)]))


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def listed(items: Sequence[str]) -> str:
    """Returns `a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def plain(text: str) -> str:
    """Returns the text without escape sequences and control characters, which a terminal would obey."""
    text = _BIDI.sub("", _ESCAPES.sub("", text))
    return "".join(" " if unicodedata.category(c) == "Cc" and c != "\n" else c for c in text)


def typeset(text: str) -> str:
    """Returns the text with true minus signs, and no line break between a number and its unit."""
    signed = re.sub(r"(?<![\w.])-(?=\d)", MINUS, text)
    return re.sub(r"(?<=\d) (?=(pp|%)(?!\w))", "\N{NO-BREAK SPACE}", signed)


def effect_text(interval: Interval) -> str:
    """Returns `-3.1 pp [-5.9, -0.4]`."""
    text = interval_text(interval, signed=True, unit="pp")
    return text if interval.low is not None else f"{text} (no interval)"


def size_text(effect: Effect) -> str:
    """Returns the sample sizes: `3 seeds, 162 questions`."""
    each = f", {effect.samples} samples each" if effect.samples > 1 else ""
    return f"{counted(effect.seeds, 'seed')}, {counted(effect.questions, 'question')}{each}"


def excludes_zero(interval: Interval) -> bool:
    return interval.low is not None and interval.high is not None and not interval.low <= 0 <= interval.high


def sentence(effect: Effect) -> str:
    """Describes an effect in one sentence, without its full stop."""
    raw = f" (difference of differences {number(effect.raw, signed=True)} pp)" if effect.raw is not None else ""
    of = " of correction gain" if effect.outcome == "gain" else ""
    text = f"{effect.label}: {effect_text(effect.interval)}{raw}{of}, adjusted p {p_text(effect.p_adjusted)}"
    if effect.seeds == 1:
        return f"{text} over questions, {size_text(effect)}; conditional on one training run of each variant"
    text += f" over questions, {p_text(effect.p_crossed_adjusted)} over questions and seeds, {size_text(effect)}"
    if not effect.se_seed and effect.seeds < FEW_SEEDS:
        return f"{text}; the seed variance is estimated as 0, but {effect.seeds} seeds are too few to rely on that"
    return text


def sure(interval: Interval, p: float, p_crossed: float, seeds: int) -> bool:
    """Returns whether the interval excludes 0 and both adjusted p-values are below 0.05.

    `p` treats questions as random, `p_crossed` questions and seeds; with one seed, only `p` counts.
    """
    return excludes_zero(interval) and p < LEVEL and (seeds == 1 or p_crossed < LEVEL)


def surely(effect: Effect) -> bool:
    return sure(effect.interval, effect.p_adjusted, effect.p_crossed_adjusted, effect.seeds)


def headline(effects: Sequence[Effect], interactions: Sequence[Effect] = (), held: Sequence[str] = ()) -> str:
    """Answers which choice matters.

    Args:
        effects: main effects on final correction accuracy, the largest first.
        held: settings with a single level in the analysed design, though the sweep varies them.
    """
    crossing = [effect for effect in interactions if surely(effect)]
    strongest = max(crossing, key=lambda effect: abs(effect.interval.value), default=None)
    sure = next((effect for effect in effects if surely(effect)), None)
    text = (f"Runs with {listed(held)} only: " if held else "") + _main(effects, sure)
    if strongest and (sure is None or abs(strongest.interval.value) > abs(sure.interval.value)):
        return f"{text} But the effects of {listed(strongest.factors)} depend on each other: {sentence(strongest)}."
    return text


def _main(effects: Sequence[Effect], sure: Effect | None) -> str:
    """Describes the largest effect, and the largest one that is sure."""
    first, found = effects[0], f"{sentence(effects[0])}."
    choice, outcome = first.factors[0], OUTCOMES["correction"]
    most = " most" if len(effects) > 1 else ""
    among = " in these training runs" if first.seeds == 1 else ""
    if sure is first:
        return f"{choice} matters{most} for {outcome}{among}: {found}"
    if sure:
        return (
            f"{sure.factors[0]} matters for {outcome}{among}: {sentence(sure)}. The largest estimate is not "
            f"distinguishable from 0: {found}"
        )
    if excludes_zero(first.interval) and first.p_adjusted >= LEVEL:
        return f"{choice} may matter{most} for {outcome}{among}, but not after adjusting for all choices: {found}"
    if first.p_adjusted < LEVEL:
        return f"{choice} matters{most} for {outcome} in these training runs, but new runs may differ: {found}"
    if not first.interval.value:
        return f"No choice changed {outcome}{among}: {found}"
    return f"No choice's effect on {outcome} is distinguishable from 0{among}. The largest estimate: {found}"


def unranked(settings: Sequence[str]) -> str:
    """Explains why variants that differ in these settings are not compared."""
    decide, them = ("decides", "it") if len(settings) == 1 else ("decide", "them")
    return (
        f"{listed(settings)} {decide} which answers count as right, so variants that differ in {them} are scored "
        "differently and not ranked."
    )


def highest(cell: Cell, variants: int) -> str:
    """Describes the accuracy of the best variant, or the only one, in the answers that training targets."""
    sizes = f"{counted(cell.questions, 'question')}, {counted(len(cell.seeds), 'seed')}"
    answers = "initial answers" if cell.trains == "initial" else "corrections"
    reached = f"{answers} are {interval_text(cell.reached, unit='%')} right"
    if not cell.n:
        return f"{cell.name}, without training: {reached}, {sizes}."
    return (
        f"{cell.name}{', the most accurate variant,' if variants > 1 else ''} after {counted(cell.n, 'iteration')}: "
        f"{reached}, {effect_text(cell.over_correction)} over M_0's corrections and "
        f"{effect_text(cell.over_initial)} over M_0's initial answers, {sizes}."
    )


def certainty(effects: Sequence[Effect], share: float, draws: int) -> str:
    """Describes how certain it is that the first effect is the largest, by the share of bootstrap draws.

    With a few seeds the bootstrap underestimates the variation between runs, so the share is omitted.
    """
    first, second = effects[0], effects[1]
    if not first.interval.value:
        return ""
    name, label = second.factors[0], second.label.removeprefix(f"{second.factors[0]} ")
    following = f"second largest effect is that of {name} ({label}): {effect_text(second.interval)}."
    if 1 < first.seeds < FEW_SEEDS:
        return f"The {following}"
    drawn = "questions and seeds" if first.seeds > 1 else "questions"
    percent = "more than 99.9" if share > 0.999 else number(100 * share)
    largest = f"{first.factors[0]} has the largest effect in {percent} % of {draws:,} bootstrap draws of {drawn}"
    return f"{largest}; the {following}"


def power(effects: Sequence[Effect], cells: int, doubled: tuple[float, float, float] | None) -> str:
    """Describes which effects the design detects, and what more questions or seeds would gain.

    `doubled` are standard errors of the first effect: of this sweep, with twice the questions, with twice the seeds.
    """
    first = effects[0]
    sizes = sorted(effect.detectable for effect in effects)
    span = " to ".join(dict.fromkeys(number(size) for size in (sizes[0], sizes[-1])))
    text = [
        f"With {counted(cells, 'variant')}, {size_text(first)}, this sweep detects main effects of {span} pp with a "
        "power of 80 %.",
    ]
    if first.se_seed is None:
        text.append("This holds for these training runs; estimating how much runs differ takes more seeds.")
    elif doubled:
        now, questions, seeds = map(number, doubled)
        text.append(
            f"The standard error of the effect of {first.factors[0]} is {now} pp; it would be {questions} pp with "
            f"twice the questions and {seeds} pp with twice the seeds."
        )
    if first.seeds == 2:
        text.append("Two seeds are too few to estimate how much training runs differ, so these figures are rough.")
    if first.needed:
        needed = [f"about {float(f'{count:.2g}'):,.0f} for {size} pp" for size, count in first.needed.items()]
        text.append(f"Questions needed for these training runs alone: {listed(needed)}.")
    return " ".join(text)


def worth(cell: Cell) -> str:
    """Describes the gain of a variant's corrections over its initial answers; for one run, with an exact test."""
    text = f"Corrections minus initial answers at the last iteration: {effect_text(cell.gain)}"
    if len(cell.seeds) > 1 or not cell.changes:
        return f"{text}."
    (change,) = cell.changes.values()
    test = f"McNemar's exact p {p_text(change.p)}" if change.can_reach else "too few changes for p < .05"
    return (
        f"{text}; {counted(change.better, 'answer')} changed from wrong to right and {change.worse} from right to "
        f"wrong ({test})."
    )
