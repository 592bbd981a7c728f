"""Rewards that compare words: in-accuracy, exact match and F1, in [0, 1], of an answer or the text after a marker."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from stasc.settings.check import expect
from stasc.tasks.rewards.normalisation import Words, dpr_tokens, normalise, released, released_tokens


@dataclass(frozen=True)
class WordReward(ABC):
    """A score of an answer's words against each reference's words, of which the best counts."""

    normalisations: ClassVar[Mapping[str, Words]] = {"squad": normalise, "stasc": released}

    scope: str  # whole: score the whole answer; final: the text after the last marker, nothing without one
    marker: str | None
    normalisation: str = "squad"

    def __post_init__(self) -> None:
        if self.scope not in ("whole", "final"):
            raise ValueError(f"reward.scope={self.scope!r}: expected whole or final")
        if self.scope == "final" and not (self.marker and self.marker.strip()):
            raise ValueError(
                "reward.scope=final needs a prompt with an answer marker: take prompt=cot, or set reward.marker"
            )
        hint = "; dpr is a match of tokens, for reward=in_accuracy" if self.normalisation == "dpr" else ""
        known = self.normalisation in self.normalisations
        expect("reward.normalisation", self.normalisation, known, " or ".join(self.normalisations) + hint)

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        words = [*self.key(answer)]
        golds = filter(None, map(self._normalise, references)) if words else ()
        return max((self.score(words, gold) for gold in golds), default=0.0)

    def key(self, answer: str) -> tuple[str, ...]:
        """Returns the words of the scored part of an answer."""
        scored = after_last(str(self.marker), answer) if self.scope == "final" else answer
        return tuple(self._normalise(scored or ""))

    @property
    def unmarked(self) -> Callable[[str], bool] | None:
        return (lambda answer: after_last(str(self.marker), answer) is None) if self.scope == "final" else None

    def problem(self, references: Sequence[str]) -> str | None:
        """Returns why no answer can be right: no reference has a word. None if one has.

        The rule is SQuAD's for every normalisation, so runs that differ in it have the same questions.
        """
        if any(map(normalise, references)):
            return None
        return f"its reference {references[0][:80]!r} has no word, so that no answer can be right"

    def _normalise(self, text: str) -> list[str]:
        return self.normalisations[self.normalisation](text)

    @abstractmethod
    def score(self, words: list[str], gold: list[str]) -> float:
        """Returns the score of an answer's words against a reference's. Both have at least one."""


@dataclass(frozen=True)
class InAccuracy(WordReward):
    """The paper's In-accuracy: 1 if the answer contains a reference, word for word, else 0.

    A reference of articles only is right only in an answer of articles only: in a longer one, articles are no answer.
    """

    normalisations: ClassVar[Mapping[str, Words]] = {"squad": normalise, "stasc": released_tokens, "dpr": dpr_tokens}

    def score(self, words: list[str], gold: list[str]) -> float:
        return float(f" {' '.join(gold)} " in f" {' '.join(words)} ")


@dataclass(frozen=True)
class ExactMatch(WordReward):
    """SQuAD's exact match: 1 if the answer is a reference and nothing else, else 0."""

    def score(self, words: list[str], gold: list[str]) -> float:
        return float(words == gold)


@dataclass(frozen=True)
class F1(WordReward):
    """SQuAD's F1: the harmonic mean of precision and recall of the answer's words, counting repetitions."""

    def score(self, words: list[str], gold: list[str]) -> float:
        common = sum((Counter(words) & Counter(gold)).values())
        return 2 * common / (len(words) + len(gold))


def after_last(marker: str, text: str) -> str | None:
    """Returns the text after the last `marker`, such as "Final Answer:"; None without a marker.

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
