"""The answer marker: finds the final answer in a longer text, as after "Final Answer:"."""

from __future__ import annotations

import re
from functools import cache


def after_last(marker: str, text: str) -> str | None:
    """Returns the text after the last `marker`; None without a marker.

    It may be written in another case, with other white space, with a space before its punctuation, or bold:
    "**Final answer :** 4" contains "Final Answer:".
    """
    found = _until_marker(marker).match(text)
    return text[found.end() :] if found else None


@cache
def _until_marker(marker: str) -> re.Pattern[str]:
    marker = marker.strip()
    marker = marker.strip("*_ ") or marker  # emphasis around it would make the search quadratic
    pieces = re.findall(r"\w+|\s+|[^\w\s]+", marker)
    pattern = ""
    for piece, after in zip(pieces, [*pieces[1:], ""], strict=True):
        word, punctuation_next = bool(re.match(r"\w", piece)), bool(re.match(r"[^\w\s]", after))
        if piece.isspace():
            pattern += r"[\s*]*" if punctuation_next else r"[\s*]+"
        else:
            pattern += re.escape(piece).replace(":", "[:：]") + (r"[\s*]*" if word and punctuation_next else "")
    return re.compile(rf".*{pattern}(?:\*+|_+)?", re.DOTALL | re.IGNORECASE)
