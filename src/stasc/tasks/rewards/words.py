"""How good is this answer? Three scores in [0, 1] of a text against its references; the best reference counts.

Text is normalised here and nowhere else. `reward.normalisation` chooses how:

`squad`, the default: as by the official evaluation script of SQuAD v1.1 (Rajpurkar et al. 2016, arXiv 1606.05250):
lower case, no punctuation, no articles, single spaces. Our changes, all for text that is not plain English:

- Unicode NFKC comes first, and lower case is `casefold`: "Ｐａｒｉｓ" is "paris", "Straße" is "strasse".
- Punctuation is Python's `string.punctuation` and every Unicode character of a category P: also “, – and ¿.
- A text of nothing but articles keeps them: "The" and "A" can be answers.
- Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are compared character by
  character, a combining mark with the character before it: "巴黎" stands in "法国的首都是巴黎。". That is the mixed
  segmentation of the official evaluation of MLQA (Lewis et al. 2020, arXiv 1910.07475), which has it for Chinese,
  https://github.com/facebookresearch/MLQA/blob/5ef5c731a96acb7008b51aac4acb5fa9dff4f297/mlqa_evaluation_v1.py#L26-L44
  Its price: "京都" stands in "東京都" as well.

As in the original, punctuation leaves no space behind: "N'Djamena" is "ndjamena", but "3.5" and "35" are alike too, and
"Africa's" does not hold "Africa".

`stasc`: as the authors' released code, where punctuation (ASCII alone) leaves a space behind, so that "Africa's" holds
"Africa"; in-accuracy compares tokens, as DPR does,
https://github.com/VityaVitalich/STASC/blob/4ec89bf05d24174f3d06b0712a008416550b82f0/src/evaluation/qa_grader.py#L54-L70

`dpr`, of in-accuracy alone: DPR's match of tokens (Karpukhin et al. 2020, arXiv 2004.04906), where punctuation and
articles are tokens like others, and a run of letters, digits and marks is one,
https://github.com/facebookresearch/DPR/blob/10ca7200a2549dbf4e9542aa61a6f541e535499f/dpr/data/qa_validation.py#L149-L175

Our changes to these two: a reference without a word is right in no answer, where there it is right in every one; and
with `reward.scope=final` the last marker counts, not the first. In all three, zero-width characters are removed first.
"""

from __future__ import annotations

import logging
import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from stasc.tasks.text import normal_form, without_zero_width

log = logging.getLogger(__name__)

ARTICLES = frozenset({"a", "an", "the"})

# Han, kana, Bopomofo, Thai, Lao, Burmese and Khmer: no spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")

Words = Callable[[str], list[str]]


def normalise(text: str) -> list[str]:
    """The words of `text` as SQuAD compares them; none if it holds only punctuation and white space."""
    text = normal_form("NFKC", without_zero_width(text)).casefold()
    punctuation = {c for c in set(text) if c in string.punctuation or unicodedata.category(c).startswith("P")}
    text = re.sub(f"[{re.escape(''.join(punctuation))}]+", "", text) if punctuation else text
    words = _spaced(text).split()
    return [word for word in words if word not in ARTICLES] or words


def _spaced(text: str) -> str:
    """The text with spaces around each character of a script that has none between words."""
    if not _UNSPACED_CHARACTER.search(text):
        return text
    marks = "".join(c for c in set(text) if unicodedata.category(c).startswith("M"))
    mark = f"[{re.escape(marks)}]*" if marks else ""
    return re.sub(f"[{_UNSPACED}]{mark}", r" \g<0> ", text)


_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def released(text: str) -> list[str]:
    """The words of `text` as the authors' released code compares them in exact match and F1."""
    text = without_zero_width(text).lower().translate(_PUNCTUATION_TO_SPACE)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def released_tokens(text: str) -> list[str]:
    """The tokens of `text` as the authors' released code compares them in in-accuracy."""
    return _tokens(" ".join(released(normal_form("NFD", text))))


def dpr_tokens(text: str) -> list[str]:
    """The tokens of `text` as DPR compares them."""
    return _tokens(normal_form("NFD", without_zero_width(text)))


def _tokens(text: str) -> list[str]:
    """DPR's SimpleTokenizer: runs of letters, digits and marks, and every other character that is no space."""
    apart = {}
    for character in set(text):
        kind = unicodedata.category(character)[0]
        if kind not in "LNM":
            apart[ord(character)] = " " if kind in "ZC" else f" {character} "
    return [token.lower() for token in text.translate(apart).split()]


def after_last(marker: str, text: str) -> str | None:
    """What follows the last `marker` in `text`; None if it is not there.

    It may be written in another case, with other white space, with a space before its punctuation, or bold:
    "**Final answer :** 4" holds "Final Answer:".
    """
    found = _until_marker(marker).match(text)
    return text[found.end() :] if found else None


@cache
def _until_marker(marker: str) -> re.Pattern[str]:
    marker = marker.strip()
    marker = marker.strip("*_ ") or marker  # with what may stand around it, a search would take quadratic time
    pieces = re.findall(r"\w+|\s+|[^\w\s]+", marker)
    pattern = ""
    for piece, after in zip(pieces, [*pieces[1:], ""], strict=True):
        word, punctuation_next = bool(re.match(r"\w", piece)), bool(re.match(r"[^\w\s]", after))
        if piece.isspace():
            pattern += r"[\s*]*" if punctuation_next else r"[\s*]+"
        else:
            pattern += re.escape(piece).replace(":", "[:：]") + (r"[\s*]*" if word and punctuation_next else "")
    return re.compile(rf".*{pattern}(?:\*+|_+)?", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Reward(ABC):
    """A score of an answer's words against a reference's words, and which part of the answer is scored."""

    normalisations: ClassVar[Mapping[str, Words]] = {"squad": normalise, "stasc": released}

    scope: str  # whole: the whole answer; final: what follows the last marker, where no marker means no answer
    marker: str | None
    normalisation: str = "squad"

    def __post_init__(self) -> None:
        if self.scope not in ("whole", "final"):
            raise ValueError(f"reward.scope={self.scope!r}: expected whole or final")
        if self.scope == "final" and not (self.marker and self.marker.strip()):
            raise ValueError(
                "reward.scope=final needs a prompt with an answer marker: take prompt=cot, or set reward.marker"
            )
        if self.normalisation not in self.normalisations:
            hint = "; dpr is a match of tokens, for reward=in_accuracy" if self.normalisation == "dpr" else ""
            raise ValueError(
                f"reward.normalisation={self.normalisation}: expected {' or '.join(self.normalisations)}{hint}"
            )

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        words = self.words(answer)
        golds = filter(None, map(self._normalise, references)) if words else ()
        return max((self.score(words, gold) for gold in golds), default=0.0)

    def words(self, answer: str) -> list[str]:
        """The words of what is scored of an answer."""
        scored = after_last(self.marker, answer) if self.scope == "final" and self.marker else answer
        return self._normalise(scored or "")

    def key(self, answer: str) -> tuple[str, ...]:
        """What answers that say the same have in common; empty for one that says nothing."""
        return tuple(self.words(answer))

    def unmarked(self, answer: str) -> bool:
        """Whether an answer lacks the marker that its score needs."""
        return self.scope == "final" and bool(self.marker) and after_last(str(self.marker), answer) is None

    def problem(self, references: Sequence[str]) -> str | None:
        """Why no answer can be right, if that is so: no reference has a word.

        The rule is SQuAD's for every normalisation, so that runs which differ in it are asked the same questions.
        """
        if any(map(normalise, references)):
            return None
        return f"its reference {references[0][:80]!r} has no word, so that no answer can be right"

    def _normalise(self, text: str) -> list[str]:
        return self.normalisations[self.normalisation](text)

    @abstractmethod
    def score(self, words: list[str], gold: list[str]) -> float:
        """The score of an answer's words against a reference's. Each has at least one."""


@dataclass(frozen=True)
class InAccuracy(Reward):
    """The paper's In-accuracy: 1 if a reference stands in the answer, word for word, else 0.

    A reference of nothing but articles is right only in an answer of nothing but articles: in any longer one, articles
    are no answer.
    """

    normalisations: ClassVar[Mapping[str, Words]] = {"squad": normalise, "stasc": released_tokens, "dpr": dpr_tokens}

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


def inner(reward: Any) -> Any:
    """The reward itself, without what counts its errors."""
    return reward.reward if isinstance(reward, ZeroOnError) else reward


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
