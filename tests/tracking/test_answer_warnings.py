"""One warning each for mostly truncated and mostly empty answers."""

from __future__ import annotations

import pytest

from stasc.records import Answer
from stasc.tracking.answer_warnings import AnswerWarnings

WHOLE, CUT, EMPTY = Answer("Rome", 2), Answer("Rome is", 2, truncated=True), Answer(" \n", 2)


def test_more_than_half_is_warned_of_once_with_the_settings_to_change(caplog: pytest.LogCaptureFixture) -> None:
    warnings = AnswerWarnings()
    warnings("test initial answers", [CUT, CUT, CUT, WHOLE])
    warnings("corrections", [CUT])
    (message,) = caplog.messages
    assert message.startswith("75 % of the test initial answers are truncated: ")
    for name in ("sampling.max_new_tokens", "model.chat_template=plain", "sampling.stop"):
        assert name in message


def test_each_kind_has_its_own_warning(caplog: pytest.LogCaptureFixture) -> None:
    warnings = AnswerWarnings()
    warnings("initial answers", [EMPTY, EMPTY, WHOLE])
    warnings("corrections", [CUT])
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "67 % of the initial answers are empty",
        "100 % of the corrections are truncated",
    ]


def test_half_and_nothing_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warnings = AnswerWarnings()
    warnings("initial answers", [CUT, CUT, WHOLE, EMPTY])
    warnings("initial answers", [])
    warnings.not_asked("corrections", [])
    assert not caplog.messages


def test_corrections_that_cannot_be_asked_for_are_counted_and_the_first_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warnings = AnswerWarnings()
    warnings.not_asked("test corrections", ["question a, initial answer 0", "question b, initial answer 1"])
    warnings.not_asked("corrections", ["question c, initial answer 0"])
    (message,) = caplog.messages
    assert message.startswith("test corrections of 2 initial answers (first: question a, initial answer 0) cannot be")
