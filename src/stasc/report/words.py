"""Formats numbers, intervals and texts: with a plain minus in sentences, a true one on the page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from stasc.report.records import Interval

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
