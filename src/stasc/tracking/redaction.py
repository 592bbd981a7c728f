"""Keeps secrets out of what a run writes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

HIDDEN = "***"
SECRET_NAME = re.compile(
    r"(?:^|_)(?:keys?|[a-z]*(?:token|secrets?|passwords?|passwd|passphrase|credentials?"
    r"|apikey|accesskey|privatekey|secretkey))(?:_|$)"  # max_new_tokens and monkey are none
)
WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # apiKey, HFToken


def redact(config: Mapping[str, object]) -> dict[str, object]:
    """The config with `***` for its secrets, to any depth.

    Hidden are the values of keys that are named like a secret (a word of the name is token, key, secret, password or
    credential; null and booleans stay), and, in every text, the values of environment variables that are named so.
    """
    hidden = _secret_values()
    return {key: _redacted(key, value, hidden) for key, value in config.items()}


def _redacted(name: str, value: object, hidden: Sequence[str]) -> object:
    if value is None or isinstance(value, bool):
        return value
    if _is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        return _scrubbed(value, hidden)
    if isinstance(value, Mapping):
        return {key: _redacted(str(key), item, hidden) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted("", item, hidden) for item in value]
    return value


def _is_secret(name: str) -> bool:
    words = re.sub("[^a-z]+", "_", WORD_START.sub("_", name).lower())
    return SECRET_NAME.search(words) is not None


def _secret_values() -> list[str]:
    """Values of environment variables named like a secret, the longest first: one may contain another."""
    values = {value for name, value in os.environ.items() if len(value) >= 8 and _is_secret(name)}
    return sorted(values, key=len, reverse=True)


def scrub(text: str) -> str:
    """The text with `***` for the values of environment variables that are named like a secret."""
    return _scrubbed(text, _secret_values())


def _scrubbed(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        text = text.replace(value, HIDDEN)
    return text
