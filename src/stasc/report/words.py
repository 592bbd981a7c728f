"""Numbers as the page prints them."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from stasc.report.records import Interval

MINUS = "−"


def number(value: float, *, signed: bool = False, digits: int = 1) -> str:
    """With a true minus sign, and never -0.0."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{'+' if signed else ''}.{digits}f}".replace("-", MINUS)


def interval_text(interval: Interval, *, signed: bool = False) -> str:
    """`+3.1 [−0.4, +6.6]`, or the estimate alone where there are no bounds."""
    text = number(interval.value, signed=signed)
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{number(interval.low, signed=signed)}, {number(interval.high, signed=signed)}]"


def listed(items: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def prose(text: str) -> Markup:
    """A sentence for the page: true minus signs, M_0 as the paper prints it, and no number apart from its unit."""
    printed = re.sub(r"(?<![\w.])-(?=\d)", MINUS, str(escape(text)))
    printed = re.sub(r"\bM_(\w)\b", r"M<sub>\1</sub>", printed)
    return Markup(re.sub(r"(?<=\d) (?=(pp|%)(?!\w))", "\N{NO-BREAK SPACE}", printed))
