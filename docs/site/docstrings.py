"""Prepares docstrings for Markdown: `y[i][k]` is an index, not a link."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Brackets(griffe.Extension):
    """Escapes brackets outside code in every docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            parts = re.split(r"(`+[^`]+`+)", obj.docstring.value)
            parts[::2] = [part.replace("[", r"\[") for part in parts[::2]]
            obj.docstring.value = "".join(parts)
