"""Checks that every question fits into the model's context, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from stasc.models.chat import Chat, Refused
from stasc.records import Split
from stasc.settings.sections import Evaluation, Sampling
from stasc.tasks.prompt import Conversations, Message

_ANSWER = "\ue000"  # private use: no prompt contains it

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ANSWER = "\ue000"  # a character for private use, so no question has it


def context_limit(config: PreTrainedConfig) -> int | None:
    """Returns the most tokens that a model can read and write together; None if its configuration sets no limit."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_context(
    limit: int | None,
    chat: Chat,
    prompt: Conversations,
    train: Split,
    test: Split,
    sampling: Sampling,
    evaluation: Evaluation,
) -> None:
    """Checks the prompt of each question, and that of its correction after the longest possible answer.

    Raises: ValueError naming the question, and the setting that limits its answers.
    """
    tested = "sampling" if evaluation.max_new_tokens is None else "evaluation"
    for split, group, new in (
        (train, "sampling", sampling.max_new_tokens),
        (test, tested, evaluation.sampling(sampling).max_new_tokens),
    ):
        setting = f"{group}.max_new_tokens"
        for question in split.questions:
            quoted = prompt.ask_to_correct(question.text, _ANSWER)
            answers = sum(message["content"].count(_ANSWER) for message in quoted)
            corrections = [prompt.ask_to_correct(question.text, y1) for y1 in ("", "?")]
            for what, conversations, read in (
                ("its prompt", [prompt.ask(question.text)], 0),
                ("the prompt of its correction", corrections, answers * new),
            ):
                try:
                    tokens = _length(chat, conversations) + read
                except Refused as error:
                    raise ValueError(f"question {question.name}: {what}: {error}, or leave the question out") from error
                if limit is not None and tokens + new > limit:
                    raise ValueError(
                        f"question {question.name}: {what} takes up to {tokens} tokens, which with {setting}={new} "
                        f"exceeds the model's context of {limit} tokens; lower {setting}, or leave the question out"
                    )


def _length(chat: Chat, conversations: Sequence[Sequence[Message]]) -> int:
    """Returns the tokens of the first prompt that the chat template accepts: some refuse an empty answer."""
    for conversation in conversations[:-1]:
        with suppress(Refused):
            return len(chat.prompt(conversation))
    return len(chat.prompt(conversations[-1]))
