"""Do all questions fit into the model's context? Known before any weights are read, not hours into the run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from stasc.models.chat import Chat, Refused
from stasc.models.config import ModelConfig, reading
from stasc.records import Split
from stasc.settings.sections import Evaluation, Sampling
from stasc.tasks.prompt import Conversations, Message

_ANSWER = "\ue000"  # private use: no prompt contains it


def context_limit(model: ModelConfig, base: str) -> int | None:
    """The most tokens that M_0 can read and write together, by its configuration; None if it sets no limit."""
    from transformers import AutoConfig

    with reading(model):
        config = AutoConfig.from_pretrained(base, revision=model.revision, trust_remote_code=False)
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
    """Checks each question's prompt, and the prompt of its correction where answers are as long as they may be.

    An answer that becomes more tokens when it is read again than it was sampled as is not asked to be corrected, where
    that does not fit.
    Raises: ValueError naming the question, and the setting that limits its answers.
    """
    tested = "sampling" if evaluation.max_new_tokens is None else "evaluation"
    marked = prompt.ask_to_correct("", _ANSWER)
    answers = sum(message["content"].count(_ANSWER) for message in marked)  # how often the prompt repeats y1
    for split, group, new in (
        (train, "sampling", sampling.max_new_tokens),
        (test, tested, evaluation.sampling(sampling).max_new_tokens),
    ):
        setting = f"{group}.max_new_tokens"
        for question in split.questions:
            for what, conversations, read in (
                ("its prompt", [prompt.ask(question.text)], 0),
                (
                    "the prompt of its correction",
                    [prompt.ask_to_correct(question.text, y1) for y1 in ("", "?")],
                    answers * new,
                ),
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
    """Tokens of the first prompt that the chat template takes: some refuse an empty answer."""
    for conversation in conversations[:-1]:
        with suppress(Refused):
            return len(chat.prompt(conversation))
    return len(chat.prompt(conversations[-1]))
