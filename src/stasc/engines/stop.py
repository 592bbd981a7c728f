"""Stop strings: where one stands in a sampled answer, the answer ends, and text and tokens are cut there."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

_MARGIN = 4  # tokens: of a tail, the first may decode otherwise than within the whole


class Codec(Protocol):
    """Text to tokens and back."""

    def encode(self, text: str) -> tuple[int, ...]: ...
    def decode(self, ids: Sequence[int], /) -> str: ...


@dataclass(frozen=True)
class StopStrings:
    """The strings that end an answer, and what decodes its tokens."""

    strings: tuple[str, ...]
    codec: Codec

    def met(self, ids: Sequence[int]) -> bool:
        """Whether the last token drawn completes a stop string. Decodes no more than it has to."""
        tail = self.codec.decode(ids[-(max(len(string.encode()) for string in self.strings) + _MARGIN) :])
        return self._place(tail) is not None and self._place(self.codec.decode(ids)) is not None

    def cut(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]] | None:
        """The text before the first stop string and the tokens it was sampled as; None where there is no stop string.

        Where the stop string begins within a token, what stands before it in that token is encoded anew, or left out if
        no tokens give it.
        """
        text = self.codec.decode(ids)
        place = self._place(text)
        if place is None:
            return None
        kept = text[:place]
        whole = bisect_right(range(len(ids) + 1), place, key=lambda end: len(self.codec.decode(ids[:end]))) - 1
        while not kept.startswith(before := self.codec.decode(ids[:whole])):  # half a character
            whole -= 1
        begin = tuple(ids[:whole])
        rest = self.codec.encode(kept[len(before) :]) if len(before) < len(kept) else ()
        for tokens in (begin + rest, self.codec.encode(kept)):  # a tokenizer may put a space before a text
            if self.codec.decode(tokens) == kept:
                return kept, tokens
        return before, begin  # what is scored is what is trained

    def _place(self, text: str) -> int | None:
        return min((place for string in self.strings if (place := text.find(string)) >= 0), default=None)
