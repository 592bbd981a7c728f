"""Normalisation: how rewards turn a text into the words that they compare. Text is normalised here and nowhere else.

`reward.normalisation` chooses a rule.

`squad`, the default, is the rule of SQuAD v1.1's official evaluation script (Rajpurkar et al. 2016, arXiv 1606.05250):
lower case, no punctuation, no articles, single spaces. Our changes concern text that is not plain English:

- Unicode NFKC comes first, and lower case is `casefold`: "Ｐａｒｉｓ" is "paris", "Straße" is "strasse".
- Punctuation is Python's `string.punctuation` and every Unicode character of a category P: also “, – and ¿.
- A text of nothing but articles keeps them: "The" and "A" can be answers.
- Scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are compared character by character,
  combining marks with the character before them: "法国的首都是巴黎。" contains "巴黎". This is the mixed segmentation
  of MLQA's official evaluation (Lewis et al. 2020, arXiv 1910.07475), which applies it to Chinese,
  https://github.com/facebookresearch/MLQA/blob/5ef5c731a96acb7008b51aac4acb5fa9dff4f297/mlqa_evaluation_v1.py#L26-L44
  Its price: "東京都" contains "京都" as well.

As in the original, punctuation leaves no space behind: "N'Djamena" is "ndjamena", but "3.5" and "35" are equal too, and
"Africa's" does not contain "Africa".

`stasc` is the rule of the authors' released code, where punctuation (ASCII only) leaves a space behind, so "Africa's"
contains "Africa"; in-accuracy compares tokens, as DPR does,
https://github.com/VityaVitalich/STASC/blob/4ec89bf05d24174f3d06b0712a008416550b82f0/src/evaluation/qa_grader.py#L54-L70

`dpr`, for in-accuracy only, is DPR's token match (Karpukhin et al. 2020, arXiv 2004.04906), where punctuation and
articles are tokens like others, and a run of letters, digits and marks is one token,
https://github.com/facebookresearch/DPR/blob/10ca7200a2549dbf4e9542aa61a6f541e535499f/dpr/data/qa_validation.py#L149-L175

Our changes to the last two: a reference without a word is right in no answer, where the originals find it in every one;
and with `reward.scope=final` the last marker counts, not the first. All three remove zero-width characters first.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable

from stasc.tasks.text import normal_form, without_zero_width

ARTICLES = frozenset({"a", "an", "the"})

# Han, kana, Bopomofo, Thai, Lao, Burmese and Khmer: no spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31bf\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f\uf900-\ufaff\U00020000-\U0003ffff"
)
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")

Words = Callable[[str], list[str]]


def normalise(text: str) -> list[str]:
    """Returns the words of `text` as SQuAD compares them; none if it is only punctuation and white space."""
    text = normal_form("NFKC", without_zero_width(text)).casefold()
    punctuation = {c for c in set(text) if c in string.punctuation or unicodedata.category(c).startswith("P")}
    text = re.sub(f"[{re.escape(''.join(punctuation))}]+", "", text) if punctuation else text
    words = _spaced(text).split()
    return [word for word in words if word not in ARTICLES] or words


def _spaced(text: str) -> str:
    """Returns the text with spaces around each character of a script that is written without them."""
    if not _UNSPACED_CHARACTER.search(text):
        return text
    marks = "".join(c for c in set(text) if unicodedata.category(c).startswith("M"))
    mark = f"[{re.escape(marks)}]*" if marks else ""
    return re.sub(f"[{_UNSPACED}]{mark}", r" \g<0> ", text)


_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def released(text: str) -> list[str]:
    """Returns the words of `text` as the authors' released code compares them in exact match and F1."""
    text = without_zero_width(text).lower().translate(_PUNCTUATION_TO_SPACE)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def released_tokens(text: str) -> list[str]:
    """Returns the tokens of `text` as the authors' released code compares them in in-accuracy."""
    return _tokens(" ".join(released(normal_form("NFD", text))))


def dpr_tokens(text: str) -> list[str]:
    """Returns the tokens of `text` as DPR compares them."""
    return _tokens(normal_form("NFD", without_zero_width(text)))


def _tokens(text: str) -> list[str]:
    """Splits as DPR's SimpleTokenizer: runs of letters, digits and marks, and single other characters but spaces."""
    apart = {}
    for character in set(text):
        kind = unicodedata.category(character)[0]
        if kind not in "LNM":
            apart[ord(character)] = " " if kind in "ZC" else f" {character} "
    return [token.lower() for token in text.translate(apart).split()]
