"""Hides secrets in everything that a run writes."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

HIDDEN = "***"
SECRET_NAME = re.compile(
    r"(?:^|_)(?:keys?|[a-z]*(?:token|secrets?|passwords?|passwd|passphrase|credentials?"
    r"|apikey|accesskey|privatekey|secretkey))(?:_|$)"  # but not max_new_tokens or monkey
)
WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # apiKey, HFToken
OVERRIDE = re.compile(r"(?:^|,)[+~]*([\w.@/:-]+)=")  # on a command line; Hydra also joins overrides with commas
SHORTEST = 8  # characters of a value that is searched for in texts; shorter ones may be ordinary words

_registered: set[str] = set()


def register_secrets(config: Mapping[str, object]) -> None:
    """Registers the values of secret-like keys of a config, to be hidden in any text from now on."""
    for name, value in config.items():
        _register(name, value, secret=False)


def redact(config: Mapping[str, object]) -> dict[str, object]:
    """Returns a config with `***` in place of its secrets, at any depth.

    It hides values of secret-like keys (a word of the name is token, key, secret, password or credential), unless they
    are empty or boolean, the same in overrides such as `key=value`, and whatever `scrub` hides.
    """
    hidden = _secret_values()
    return {key: _redacted(key, value, hidden) for key, value in config.items()}


def scrub(text: str) -> str:
    """Returns a text with `***` for registered values and for those of secret-like environment variables.

    Values are found verbatim and as Python, JSON and URLs escape them.
    """
    return _scrubbed(text, _secret_values())


class Formatter(logging.Formatter):
    """A log formatter that hides secrets, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def _register(name: str, value: object, secret: bool) -> None:
    secret = secret or _is_secret(name)
    if isinstance(value, Mapping):
        for key, item in value.items():
            _register(str(key), item, secret)
    elif isinstance(value, list | tuple):
        for item in value:
            _register("", item, secret)
    elif secret and len(str(value)) >= SHORTEST:
        _registered.add(str(value))


def _redacted(name: str, value: object, hidden: Sequence[str]) -> object:
    if not value or value is True:
        return value
    if _is_secret(name):
        return HIDDEN
    if isinstance(value, str):
        for override in OVERRIDE.finditer(value):
            if _is_secret(override[1]):
                return _scrubbed(value[: override.end()], hidden) + HIDDEN
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
    """Returns the strings to hide, longest first, as one may contain another."""
    values = {value for name, value in os.environ.items() if len(value) >= SHORTEST and _is_secret(name)} | _registered
    forms = {form for value in values for form in (value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, ""))}
    return sorted(forms, key=len, reverse=True)


def _scrubbed(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        text = text.replace(value, HIDDEN)
    return text
