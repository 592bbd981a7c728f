"""How good is this answer? Three scores in [0, 1] of a text against its references; the best reference counts.

Text is normalised here and nowhere else, as by the official evaluation script of SQuAD v1.1 (Rajpurkar et al. 2016,
arXiv 1606.05250): lower case, no punctuation, no articles, single spaces. Our changes, all for text that is not plain
English:

- Unicode NFKC comes first, and lower case is `casefold`: "Ｐａｒｉｓ" is "paris", "Straße" is "strasse".
- Punctuation is Python's `string.punctuation` and every Unicode character of a category P: also “, – and ¿.
- A text of nothing but articles keeps them: "The" and "A" can be answers.

As in the original, punctuation leaves no space behind: "N'Djamena" is "ndjamena", but "3.5" and "35" are alike too.
"""

from __future__ import annotations

import logging
import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)

ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> list[str]:
    """The words of `text` as they are compared; none if it holds only punctuation and white space."""
    # Python's NFKC is quadratic in the length of a run of combining marks, hence at most 256 characters at a time.
    text = re.sub(r"\S{1,256}", lambda piece: unicodedata.normalize("NFKC", piece[0]), text).casefold()
    punctuation = {c for c in set(text) if c in string.punctuation or unicodedata.category(c).startswith("P")}
    words = (re.sub(f"[{re.escape(''.join(punctuation))}]+", "", text) if punctuation else text).split()
    return [word for word in words if word not in ARTICLES] or words


def after_last(marker: str, text: str) -> str | None:
    """What follows the last `marker` in `text`, in whatever case it is written; None if it is not there."""
    found = re.match(f".*{re.escape(marker)}", text, re.DOTALL | re.IGNORECASE)
    return text[found.end() :] if found else None


@dataclass(frozen=True)
class Reward(ABC):
    """A score of an answer's words against a reference's words, and which part of the answer is scored."""

    scope: str  # whole: the whole answer; final: what follows the last marker, where no marker means no answer
    marker: str | None

    def __post_init__(self) -> None:
        if self.scope not in ("whole", "final"):
            raise ValueError(f"reward.scope={self.scope!r}: expected whole or final")
        if self.scope == "final" and not (self.marker and self.marker.strip()):
            raise ValueError(
                "reward.scope=final needs a prompt with an answer marker: take prompt=cot, or set reward.marker"
            )

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        words = self.words(answer)
        return max((self.score(words, normalise(gold)) for gold in references), default=0.0) if words else 0.0

    def words(self, answer: str) -> list[str]:
        """The words of what is scored of an answer."""
        scored = after_last(self.marker, answer) if self.scope == "final" and self.marker else answer
        return normalise(scored or "")

    @abstractmethod
    def score(self, words: list[str], gold: list[str]) -> float:
        """The score of an answer's words, of which there is at least one, against a reference's."""


@dataclass(frozen=True)
class InAccuracy(Reward):
    """The paper's In-accuracy: 1 if a reference stands in the answer, word for word, else 0.

    A reference of nothing but articles is right only in an answer of nothing but articles: in any longer one, articles
    are no answer.
    """

    def score(self, words: list[str], gold: list[str]) -> float:
        return float(f" {' '.join(gold)} " in f" {' '.join(words)} ")


@dataclass(frozen=True)
class ExactMatch(Reward):
    """SQuAD's exact match: 1 if the answer is a reference and nothing else, else 0."""

    def score(self, words: list[str], gold: list[str]) -> float:
        return float(words == gold)


@dataclass(frozen=True)
class F1(Reward):
    """SQuAD's F1: the harmonic mean of precision and recall of the answer's words, counting repetitions."""

    def score(self, words: list[str], gold: list[str]) -> float:
        common = sum((Counter(words) & Counter(gold)).values())
        return 2 * common / (len(words) + len(gold))


class ZeroOnError:
    """A reward whose errors count 0: `reward` where it raises nothing. It counts the answers that it raised for."""

    def __init__(self, reward: Callable[[str, Sequence[str]], float]) -> None:
        self.reward, self._failed, self._first = reward, 0, ""

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        try:
            return float(self.reward(answer, references))
        except Exception as error:  # a reward is anybody's code
            if not self._failed:
                log.warning("reward_errors=zero: %s: %s, for %r, which counts 0", type(error).__name__, error, answer)
            self._failed += 1
            # Nothing of the error's text, which may hold a secret, or be another each time.
            self._first = self._first or f"{type(error).__name__} for {answer[:60]!r}"
            return 0.0

    def pop_errors(self) -> dict[str, int | str] | None:
        """For how many answers there was an error since the last call, and the first; None if there was none."""
        errors: dict[str, int | str] | None = {"answers": self._failed, "first": self._first} if self._failed else None
        self._failed, self._first = 0, ""
        return errors
