"""The command line as people type it, and as Hydra reads it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from stasc.cli.arguments import parse, quoted


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("filter=strict --multirun seed=0,1", "--multirun filter=strict seed=0,1"),
        ("seed=0 -m --config-dir conf filter=mine", "-m --config-dir conf seed=0 filter=mine"),
        ("seed=0 --cfg job", "--cfg job seed=0"),
        ("seed=0 --cfg=job -cd a=b", "--cfg=job -cd a=b seed=0"),
        ("--multi seed=0", "--multi seed=0"),
        ("store.dir=~/a model.path=~", "store.dir='~/a' model.path='~'"),
        ("model.path=~/a,~/b,c", "model.path='~/a','~/b',c"),
        ("prompt.system='~/a' prompt.marker=a~/b", "prompt.system='~/a' prompt.marker=a~/b"),
        ("hydra.run.dir=~/a hydra.sweep.dir='~/b c'", "hydra.run.dir='HOME/a' hydra.sweep.dir='HOME/b c'"),
        ("~reward ~baseline=x", "~reward ~baseline=x"),
        ("tracking=False baseline=null seed=null", "tracking='False' baseline='null' seed=null"),
    ],
)
def test_options_come_first_and_paths_are_quoted(line: str, expected: str) -> None:
    arguments = re.findall(r"(?:[^\s']|'[^']*')+", line)
    assert " ".join(parse(arguments).arguments) == expected.replace("HOME", str(Path.home()))


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1))
@example('\\"')
def test_a_value_in_two_pairs_of_quotes_reaches_the_run_as_it_is(value: str) -> None:
    (argument,) = shlex.split(quoted("prompt.system", value))
    assert OverridesParser.create().parse_overrides([argument])[0].value() == value


@pytest.mark.parametrize(
    ("line", "folder"),
    [
        ("seed=0 --config-dir mine", "mine"),
        ("--config-dir=mine seed=0", "mine"),
        ("-cd mine", "mine"),
        ("--cfg job seed=0", None),
    ],
)
def test_the_users_folder_of_settings_is_found_wherever_it_stands(line: str, folder: str | None) -> None:
    assert parse(line.split()).config_dir == folder


def test_an_abbreviated_option_is_the_option() -> None:
    assert parse(["--multi", "seed=0,1"]).has("--multirun")
    assert parse(["-m", "seed=0,1"]).has("--multirun", "-m")
    assert not parse(["-m", "seed=0,1"]).has("--version")
