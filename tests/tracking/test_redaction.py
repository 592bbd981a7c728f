"""No secret gets into a record."""

from __future__ import annotations

import json
import logging
import sys
from urllib.parse import quote

import pytest
from tracked import CANARY

import stasc.tracking.redaction as redaction
from stasc.tracking.redaction import redact, register_secrets, scrub


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hf_token", "HF_TOKEN", "hfToken", "HFToken", "token_2", "authtoken"),
        *("key", "api_key", "apiKey", "apikey", "API-KEY", "api.keys", "aws_secret_access_key"),
        *(
            "secret",
            "client_secret",
            "my secret",
            "password",
            "db_password",
            "passwd",
            "credentials",
            "wandb_credential",
        ),
    ],
)
def test_a_value_named_like_a_secret_is_hidden(name: str) -> None:
    assert redact({"a": [{name: "x"}, {name: {"b": 1}}, {name: 12}]}) == {"a": [{name: "***"}] * 3}


@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "tokens", "monkey", "keyboard", "tokenizer", "keep_models", "hockey", "secretary", "passes"],
)
def test_a_harmless_name_keeps_its_value(name: str) -> None:
    assert redact({"a": {name: 20, "b": [{name: "x"}]}}) == {"a": {name: 20, "b": [{name: "x"}]}}


def test_a_secret_that_is_not_set_is_shown_as_such() -> None:
    empty = {"token": None, "use_key": False, "any_key": True, "exclude_keys": [], "password": ""}
    assert redact(empty) == empty


def test_a_secret_in_an_override_is_hidden_with_all_that_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["+db.password=abc", "model.path=x", "++a.api_key='b c', 'd'", "~token=1", "seed=0,+db.token=abc,n=1"]
    hidden = ["+db.password=***", "model.path=x", "++a.api_key=***", "~token=***", "seed=0,+db.token=***"]
    assert redact({"task": overrides}) == {"task": hidden}


def test_what_was_learnt_is_hidden_in_any_text_however_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_registered", set())
    secret = f"{CANARY}/\n'é"
    register_secrets(
        {"db": [{"password": secret, "user": "harmless-1"}], "api_key": 1234567890, "token": ["nested-in-a-list"]}
    )
    for text in (secret, repr(secret)[1:-1], json.dumps({"x": secret}), f"https://u:{quote(secret, '')}@host"):
        assert CANARY not in scrub(f"before {text} after")
        assert scrub(f"before {text} after").startswith("before ")
    assert scrub("harmless-1 1234567890 nested-in-a-list") == "harmless-1 *** ***"
    assert redact({"url": f"u:{secret}@host"}) == {"url": "u:***@host"}


def test_a_log_line_and_its_traceback_are_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    try:
        raise ValueError(f"no {CANARY}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "refused %s", (CANARY,), sys.exc_info())
    text = redaction.Formatter("%(message)s").format(record)
    assert text.startswith("refused ***\nTraceback") and text.endswith("ValueError: no ***")


def test_values_of_secret_environment_variables_are_hidden_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", CANARY)
    monkeypatch.setenv("LONGER_PASSWORD", CANARY + "-and-more")
    monkeypatch.setenv("SHORT_KEY", "own")
    config = {"url": f"https://u:{CANARY}@host", "same": [CANARY], "longer": CANARY + "-and-more", "pairing": "own"}
    assert redact(config) == {"url": "https://u:***@host", "same": ["***"], "longer": "***", "pairing": "own"}
    assert config["same"] == [CANARY]
