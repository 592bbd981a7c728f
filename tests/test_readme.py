"""The README tells the truth about commands, options and files."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
from test_run import CONF, composed

from stasc.dashboard.__main__ import _parser as dashboard_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README, re.S)
LINES = [line.split("  #")[0].strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]
RUNS = [line for line in LINES if "-m stasc.run" in line and "--help" not in line]


@pytest.mark.parametrize("line", RUNS)
def test_every_run_command_composes(line: str) -> None:
    words = shlex.split(line)
    overrides = words[words.index("stasc.run" if "stasc.run" in words else "stasc") + 1 :]
    settings = [word for word in overrides if not word.startswith("--")]
    swept = "--multirun" in overrides or "experiment=" in line
    for job in itertools.product(*(values(word) if swept else [word] for word in settings)):
        assert composed(*job).variant


@pytest.mark.parametrize("line", [line for line in LINES if "-m stasc.dashboard" in line])
def test_every_dashboard_command_is_one(line: str) -> None:
    words = shlex.split(line)
    assert dashboard_parser().parse_args(words[words.index("stasc.dashboard") + 1 :]).project


def values(override: str) -> list[str]:
    """The overrides that a swept one stands for."""
    key, _, swept = override.partition("=")
    return [f"{key}={value}" for value in swept.split(",")]


@pytest.mark.parametrize("target", sorted({word for line in LINES for word in re.findall(r"^make (\w+)", line)}))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)


def test_the_option_table_is_conf() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.M)
    table = {group: re.findall(r"`([\w.]+)`", options) for group, options in rows}
    conf = {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in CONF.iterdir()
        if folder.is_dir() and folder.name not in ("hydra", "experiment") and any(folder.glob("*.yaml"))
    }
    assert {group: sorted(options) for group, options in table.items() if group in conf} == conf


def test_the_defaults_named_first_are_the_defaults() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| \*\*`([\w.]+)`\*\*", README, re.M))
    defaults = dict(re.findall(r"^  - (\w+): (\w+)$", (CONF / "config.yaml").read_text(), re.M))
    assert rows == defaults


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http|#)[^)]+)\)", README))))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path.split("#")[0]).exists()
