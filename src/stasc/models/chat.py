"""Renders conversations into token ids, in the same way for sampling and training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from stasc.machine.paths import path_of
from stasc.tasks.prompt import Message

PLAIN = """\
{%- for message in messages -%}
{%- if message.role == 'system' %}{{ message.content | trim }}

{% elif message.role == 'user' %}Question: {{ message.content | trim }}
{% else %}Answer: {{ message.content | trim }}{{ eos_token if loop.last else '\\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}Answer:{% endif -%}
"""

PLAIN_STOP = ("\nQuestion:",)  # the line that follows an answer

# Errors that a template's expressions raise on unforeseen content.
_TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)

_PROBES = (
    [{"role": "user", "content": "one"}],
    [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}],
)


class Refused(ValueError):
    """The error of a conversation that the chat template or the tokenizer cannot encode."""


class Chat:
    """A tokenizer with its chat template.

    Args:
        template: replaces the tokenizer's own: `plain` (Question / Answer lines, for base models) or the path of a
            Jinja file.
        template_args: passed to the template, e.g. `enable_thinking`.
        stop_ids: token ids that end an answer, besides the end-of-turn token.
        date: what a template writes as today's date; None takes it from the clock.

    `stop_strings` end an answer by default: a base model that knows no end of turn would write the next question.

    Raises: ValueError without a template, or if its prompt is not a prefix of the whole conversation.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None,
        template_args: Mapping[str, Any],
        stop_ids: Iterable[int] = (),
        date: datetime | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._date = date
        self._restricted: Tokenizer | None = None
        self.args = dict(template_args)
        self.stop_strings = PLAIN_STOP if template == "plain" else ()
        if template == "plain":
            tokenizer.chat_template = ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + PLAIN
        elif template is not None:
            tokenizer.chat_template = read_template(template)
        if not tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template, as base models do not: "
                "set model.chat_template=plain (Question / Answer lines) or to the path of a Jinja file"
            )
        self._system_role = self._has_system_role()
        for probe in _PROBES:
            self._completion_text(probe, "four")
        self.end_id = self._find_end_id()
        self.stop_ids = frozenset({self.end_id, *stop_ids})
        self.ids = frozenset(tokenizer.get_vocab().values())  # a model may have further ids, without text

    def restrict(self, embeddings: int) -> None:
        """Removes added tokens without an embedding from the tokenizer.

        Raises: ValueError if the chat template writes such a token, or it belongs to the base vocabulary.
        """
        whole = self._prompt_text(_PROBES[1]) + self._completion_text(_PROBES[1], "four")
        lacking = {id_ for id_ in self.tokenizer.get_vocab().values() if id_ >= embeddings}
        for id_ in (*self.encode(whole), self.end_id):
            if id_ in lacking:
                raise ValueError(
                    f"the chat template writes {self.tokenizer.convert_ids_to_tokens(id_)}, token {id_}, and the "
                    f"model has embeddings for {embeddings} tokens: save it after "
                    "model.resize_token_embeddings(len(tokenizer)), or set model.chat_template to another template"
                )
        if not lacking:
            return
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in lacking]
        self._restricted = Tokenizer.from_str(json.dumps(state))
        if still := lacking.intersection(self._restricted.get_vocab().values()):
            raise ValueError(
                f"the tokenizer has {len(still)} tokens beyond the model's {embeddings} embeddings, e.g. "
                f"{self._restricted.id_to_token(min(still))!r}: use the tokenizer that belongs to the model"
            )

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Returns the ids of the conversation up to where the next answer begins. Raises: Refused."""
        return self.encode(self._prompt_text(messages))

    def completion(self, messages: Sequence[Message], answer: str, *, ended: bool = True) -> tuple[int, ...]:
        """Returns the ids of the text `answer` after `prompt(messages)`, followed by the end-of-turn token.

        For texts that were not sampled, such as reference answers; sampled answers keep their ids. A truncated answer
        (`ended=False`) gets no end-of-turn token. Raises: Refused.
        """
        text = self._completion_text(messages, answer)
        prompt = self.prompt(messages)
        whole = self.encode(self._prompt_text(messages) + text)
        # If the tokenizer merges the answer's first characters into the prompt, encode the answer by itself.
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else self.encode(text)
        end = len(ids) - 1 - ids[::-1].index(self.end_id) if self.end_id in ids else len(ids)
        return (*ids[:end], self.end_id) if ended else ids[:end]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of sampled ids, without special tokens and otherwise unchanged."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> tuple[int, ...]:
        """Returns the ids of a text, where spelt special tokens count as such. Raises: Refused if it is not Unicode."""
        try:
            if self._restricted is not None:
                return tuple(self._restricted.encode(text, add_special_tokens=False).ids)
            return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except (TypeError, UnicodeEncodeError) as error:  # half a surrogate pair, which JSON can hold
            raise Refused(f"the tokenizer cannot read a text ({error})") from error

    def _completion_text(self, messages: Sequence[Message], answer: str) -> str:
        prompt = self._prompt_text(messages)
        whole = self._render([*messages, {"role": "assistant", "content": answer}], add_generation_prompt=False)
        if not whole.startswith(prompt):
            raise Refused(
                "the chat template's prompt is not a prefix of the whole conversation, so training would not see what "
                f"was sampled: the prompt ends in {prompt[-60:]!r}, the conversation in {whole[-90:]!r}; "
                "set model.chat_template to a template that keeps the prompt, or model.template_args to options of it"
            )
        return whole[len(prompt) :]

    def _prompt_text(self, messages: Sequence[Message]) -> str:
        return self._render(messages, add_generation_prompt=True)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not self._system_role:
            messages = _fold_system(messages)
        try:
            with _at(self._date):
                text = self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=add_generation_prompt, **self.args
                )
        except _TEMPLATE_ERRORS as error:
            raise Refused(f"the chat template refuses a conversation: {error}; set model.chat_template") from error
        return str(text)

    def _has_system_role(self) -> bool:
        """Whether the template keeps a system message in place: some raise, drop it, or move it after an answer."""
        self._system_role = True
        system = {"role": "system", "content": "a probe"}
        try:
            for probe in _PROBES:
                if "a probe" not in self._prompt_text([system, *probe]):
                    return False
                self._completion_text([system, *probe], "four")
        except ValueError:
            return False
        return True

    def _find_end_id(self) -> int:
        """Returns the end-of-turn token: the first special token after the answer, else the end of text."""
        tail = self._completion_text(_PROBES[0], "four").partition("four")[2]
        special = set(self.tokenizer.all_special_ids)
        special |= {id_ for id_, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        for id_ in self.encode(tail):
            if id_ in special:
                return id_
        if self.tokenizer.eos_token_id is None:
            raise ValueError(
                "neither the chat template nor the tokenizer has an end-of-turn token, so no answer would ever end: "
                "set model.chat_template to a template that writes one"
            )
        return int(self.tokenizer.eos_token_id)


@contextmanager
def _at(date: datetime | None) -> Iterator[None]:
    """Fixes the date that `strftime_now` writes in chat templates: transformers always asks the clock."""
    rendering: Any = chat_template_utils
    clock = rendering.datetime
    if date is not None:
        rendering.datetime = SimpleNamespace(now=lambda: date)
    try:
        yield
    finally:
        rendering.datetime = clock


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """Returns the conversation with its system message at the start of the first user turn."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    system, first, *rest = messages
    return [{"role": first["role"], "content": f"{system['content']}\n\n{first['content']}"}, *rest]


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def read_template(path: str) -> str:
    """Returns a Jinja file's text. Raises: ValueError if it cannot be read."""
    try:
        return path_of("model.chat_template", path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"model.chat_template={path}: neither 'plain' nor a readable Jinja file ({error})") from error
