"""Stop strings: they end an answer, and its text and tokens are cut before them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from stasc.models.chat import Chat

_MARGIN = 4  # tokens: the first of a tail may decode differently than within the whole answer


@dataclass(frozen=True)
class StopStrings:
    """The strings that end an answer, and the `Chat` whose tokenizer finds them."""

    strings: tuple[str, ...]
    chat: Chat

    def met(self, ids: Sequence[int]) -> bool:
        """Returns whether the last token completes a stop string. Decodes the whole answer only if its tail has one."""
        tail = self.chat.decode(ids[-(max(len(string.encode()) for string in self.strings) + _MARGIN) :])
        return self._start(tail) is not None and self._start(self.chat.decode(ids)) is not None

    def cut(self, ids: Sequence[int]) -> tuple[str, tuple[int, ...]] | None:
        """Returns the text before the first stop string and its sampled tokens; None without a stop string.

        If the stop string begins within a token, the text before it in that token is encoded again, or left out if no
        tokens encode it.
        """
        text = self.chat.decode(ids)
        start = self._start(text)
        if start is None:
            return None
        kept = text[:start]
        whole = bisect_right(range(len(ids) + 1), start, key=lambda end: len(self.chat.decode(ids[:end]))) - 1
        while not kept.startswith(before := self.chat.decode(ids[:whole])):  # a character may span tokens
            whole -= 1
        head = tuple(ids[:whole])
        rest = self.chat.encode(kept[len(before) :]) if len(before) < len(kept) else ()
        for tokens in (head + rest, self.chat.encode(kept)):  # a tokenizer may put a space before a text
            if self.chat.decode(tokens) == kept:
                return kept, tokens
        return before, head  # the reward and fine-tuning must see the same text

    def _start(self, text: str) -> int | None:
        return min((start for string in self.strings if (start := text.find(string)) >= 0), default=None)
