"""Warns early in a run about answers that are mostly truncated or empty, or cannot be sampled."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from statistics import fmean

from stasc.records import Answer
from stasc.units import counted

log = logging.getLogger(__name__)

_MANY = 0.5  # share of a stage's answers
_ADVICE = {
    "truncated": "raise sampling.max_new_tokens, or, for a model that was not trained to chat, set "
    "model.chat_template=plain, or sampling.stop to what follows an answer",
    "empty": "check that model.chat_template is the one that the model was trained with",
}


class AnswerWarnings:
    """One warning each for a stage of mostly truncated or empty answers, and for corrections that cannot be sampled."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def __call__(self, label: str, answers: Collection[Answer]) -> None:
        """Checks the answers of a stage, which `label` names."""
        if not answers:
            return
        shares = {
            "truncated": fmean(answer.truncated for answer in answers),
            "empty": fmean(not answer.text.strip() for answer in answers),
        }
        for kind, share in shares.items():
            if share > _MANY and kind not in self._warned:
                self._warned.add(kind)
                log.warning("%.0f %% of the %s are %s: %s", 100 * share, label, kind, _ADVICE[kind])

    def not_asked(self, label: str, names: Sequence[str]) -> None:
        """Checks for initial answers, given by name, whose corrections could not be sampled."""
        if names and "not asked" not in self._warned:
            self._warned.add("not asked")
            log.warning(
                "%s of %s (first: %s) cannot be sampled: the chat template refuses the conversation, or it exceeds the "
                "model's context; they count as empty, and are not trained on",
                label,
                counted(len(names), "initial answer"),
                names[0],
            )
