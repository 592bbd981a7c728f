"""What a sweep logs of its progress."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from stasc.cli.expect import Expect


def test_no_time_is_estimated_before_one_job_is_done(caplog: pytest.LogCaptureFixture) -> None:
    """The store may hold a few quick stages of earlier runs."""
    caplog.set_level(logging.INFO)
    done: Any = {"a": SimpleNamespace(seconds=60.0)}
    store: Any = SimpleNamespace(find=lambda kind, key: done.get(key))
    sweep = Expect()
    sweep._jobs = [[(store, "initial", key)] for key in "abc"]
    config: Any = SimpleNamespace(variant="EIE", seed=0)
    sweep.on_job_start(config)
    sweep.on_job_start(config)
    assert caplog.messages == [
        "job 1 of 3: EIE, seed 0",
        "job 2 of 3: EIE, seed 0; 0 s so far; about 2 min to go",
    ]
