"""The prompt: how a question, and the request to correct an answer, are put to the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": text}


class Conversations(Protocol):
    """The interface of prompts: the conversations of steps 1 and 2, which a chat template then renders.

    An answer must appear in them as it is, as often as need be: how long a prompt can become is computed from that.
    """

    def ask(self, question: str) -> list[Message]:
        """Returns the conversation whose next turn is an initial answer."""

    def ask_to_correct(self, question: str, y1: str) -> list[Message]:
        """Returns the conversation whose next turn is a correction of `y1`."""


@dataclass(frozen=True)
class Prompt:
    """A prompt of fixed turns: question, answer y1, request to correct it.

    `initial` contains `{question}`; `correction`, the second user turn, may contain `{question}` and `{answer}`.
    `marker` is the text that precedes the final answer, null where the whole generation is the answer.
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
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": _fill(self.initial, question=question)}]

    def ask_to_correct(self, question: str, y1: str) -> list[Message]:
        request = _fill(self.correction, question=question, answer=y1)
        return [*self.ask(question), {"role": "assistant", "content": y1}, {"role": "user", "content": request}]


def _fill(template: str, **texts: str) -> str:
    """Returns the template with its `{names}` replaced in one pass: braces in a text stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: texts.get(match[1], match[0]), template)
