"""What the model is asked, first for an answer and then for a correction of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Prompt:
    """The words of a conversation: question, answer y1, request to correct it.

    `initial` holds `{question}`; `correction`, the second user turn, may hold `{question}` and `{answer}`.
    `marker` is what the final answer stands after, null where the whole generation is the answer.
    """

    system: str | None
    initial: str
    correction: str
    marker: str | None

    def __post_init__(self) -> None:
        if "{question}" not in self.initial:
            raise ValueError(
                "prompt.initial does not contain {question}, so the model would never see the question: write it with "
                """one pair of braces, on the command line within two pairs of quotes: "prompt.initial='{question}'\""""
            )
        if not self.correction.strip():
            raise ValueError("prompt.correction is empty: write the request to correct the answer")

    def ask(self, question: str) -> list[Message]:
        """The conversation whose next turn is an initial answer."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": _fill(self.initial, question=question)}]

    def ask_to_correct(self, question: str, y1: str) -> list[Message]:
        """The conversation whose next turn is a correction of `y1`."""
        request = _fill(self.correction, question=question, answer=y1)
        return [*self.ask(question), {"role": "assistant", "content": y1}, {"role": "user", "content": request}]


def _fill(template: str, **texts: str) -> str:
    """The template with its `{names}` replaced in one pass: braces in a text are just braces."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)
