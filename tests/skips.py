"""Says which tests were skipped and how to have them run, and fails where a test must not be skipped.

A test that nobody runs finds nothing, so `--expected-skips-only` fails for every reason but those in EXPECTED: what a
machine can install, it is to install.
"""

from __future__ import annotations

from collections import Counter

import pytest

NO_GPU = "needs a CUDA device"
NO_PEER = "needs the environment of a peer"
NO_CHROMIUM = "needs Chromium"

EXPECTED = {
    NO_GPU: "run them on a machine with an NVIDIA GPU",
    NO_PEER: "make bench installs the peers; then run .bench/<peer>/bin/python -m pytest tests/test_bench.py there",
}
OTHERS = {
    NO_CHROMIUM: "install Chromium (Debian: apt-get install chromium)",
    "needs a C++ compiler": "install g++ (Debian: apt-get install g++)",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--expected-skips-only", action="store_true", help="fail if a test is skipped that this machine could run"
    )


def reasons(reports: list[pytest.TestReport]) -> Counter[str]:
    """How many tests were skipped, by reason."""
    told = (report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr) for report in reports)
    return Counter(reason.removeprefix("Skipped: ") for reason in told)


def unexpected(skipped: Counter[str]) -> list[str]:
    """The reasons that no machine without a GPU and without the peers' environments has."""
    return [reason for reason in skipped if not reason.startswith(tuple(EXPECTED))]


def summary(skipped: Counter[str]) -> list[str]:
    """A line for each reason: how many tests, why, and how to have them run."""
    ways = {**EXPECTED, **OTHERS}
    return [
        f"{count} skipped: {reason}" + "".join(f"; {way}" for known, way in ways.items() if reason.startswith(known))
        for reason, count in sorted(skipped.items())
    ]


def _skipped(config: pytest.Config) -> Counter[str]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return reasons(reporter.stats.get("skipped", [])) if reporter else Counter()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption("--expected-skips-only") and unexpected(_skipped(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = _skipped(config)
    if not skipped:
        return
    terminalreporter.section("skipped tests, and how to have them run")
    for line in summary(skipped):
        terminalreporter.line(line)
    if config.getoption("--expected-skips-only") and (wrong := unexpected(skipped)):
        terminalreporter.line(f"failed: --expected-skips-only, and tests were skipped: {'; '.join(wrong)}", red=True)
