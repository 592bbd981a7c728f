"""The report of skipped tests, on a small suite of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from skips import EXPECTED, NO_CHROMIUM, NO_GPU, NO_PEER

pytest_plugins = ["pytester"]

ONE_SKIPS = """
import pytest

def test_runs():
    pass

def test_waits():
    pytest.skip({reason!r})
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom skips import *")
    return pytester


@pytest.mark.parametrize("reason", [NO_GPU, f"{NO_PEER}: trl is not installed"])
@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_a_skip_for_want_of_a_gpu_or_a_peer_is_expected(
    suite: pytest.Pytester, reason: str, workers: tuple[str, ...]
) -> None:
    suite.makepyfile(ONE_SKIPS.format(reason=reason))
    ran = suite.runpytest_subprocess("--expected-skips-only", *workers)
    assert ran.ret == 0
    (way,) = [way for known, way in EXPECTED.items() if reason.startswith(known)]
    ran.stdout.fnmatch_lines([f"1 skipped: {reason}; {way.replace('[', '?')}"])


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_any_other_skip_fails_where_only_expected_ones_may_be(suite: pytest.Pytester, workers: tuple[str, ...]) -> None:
    suite.makepyfile(ONE_SKIPS.format(reason=NO_CHROMIUM))
    ran = suite.runpytest_subprocess("--expected-skips-only", *workers)
    assert ran.ret == 1
    ran.stdout.fnmatch_lines(["1 skipped: needs Chromium; install Chromium*", "failed: --expected-skips-only*Chromium"])


def test_without_the_option_a_skip_is_told_and_no_failure(suite: pytest.Pytester) -> None:
    suite.makepyfile(ONE_SKIPS.format(reason="some other reason"))
    ran = suite.runpytest_subprocess()
    assert ran.ret == 0
    ran.stdout.fnmatch_lines(["1 skipped: some other reason"])
