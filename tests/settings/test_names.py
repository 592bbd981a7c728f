"""Which names may become folders, and which folders are inside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stasc.settings.names import check_inside, check_name, model_name

NAMES = ["a", "7", "2026-11-22_10-00-00", "EIE-lora", "v1.0", "a..b", "A_b-c.d", "x" * 64, 7, 1.5]
NO_NAMES: dict[str, object] = {
    "upwards": "../../x",
    "absolute": "/tmp/x",
    "two parts": "a/b",
    "backslash": "a\\b",
    "drive": "C:x",
    "this folder": ".",
    "folder above": "..",
    "hidden": ".x",
    "option": "-x",
    "low line": "_x",
    "empty": "",
    "null": None,
    "space": " ",
    "inner space": "a b",
    "line end": "a\n",
    "carriage return": "a\r",
    "NUL": "a\0b",
    "escape": "a\x1b[31m",
    "home": "~",
    "variable": "$HOME",
    "65 characters": "x" * 65,
    "300 characters": "x" * 300,
    "Cyrillic a": "\u0430b",
    "full-width solidus": "a\uff0fb",
    "division slash": "a\u2215b",
    "one dot leader": "\u2024\u2024",
    "Arabic digit": "\u0663",
    "right to left": "a\u202eb",
    "accent": "é",
    "surrogate": "a\ud800",
}


@pytest.mark.parametrize("value", NAMES)
def test_a_name_is_taken_as_it_is(value: object) -> None:
    assert check_name("sweep.name", value) == str(value)


@pytest.mark.parametrize("value", NO_NAMES.values(), ids=NO_NAMES)
def test_what_is_no_name_is_refused_in_one_short_line_of_plain_characters(value: object) -> None:
    with pytest.raises(ValueError, match=r"sweep\.name=.*: expected a name of at most 64 letters") as refused:
        check_name("sweep.name", value)
    said = str(refused.value)
    assert said.isascii() and said.isprintable()
    assert len(said) < 250


@given(st.text(st.characters(), max_size=70))
def test_a_name_is_one_folder_below_another_and_nothing_else(text: str) -> None:
    try:
        name = check_name("variant", text)
    except ValueError:
        assert not re.fullmatch(r"[a-z0-9]{1,64}", text)
        return
    assert Path("/multirun", name).parent == Path("/multirun")
    assert Path("/multirun", name).name == name == text


def test_a_folder_is_inside_if_it_is_after_all_links_are_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "multirun", tmp_path / "outside"
    (root / "a").mkdir(parents=True)
    outside.mkdir()
    (root / "out").symlink_to(outside)
    (root / "in").symlink_to(root / "a")
    (tmp_path / "link-to-root").symlink_to(root)
    (root / "loose").symlink_to(tmp_path / "nothing")
    for folder in (root / "a", root / "a" / "yet-to-be-made", root / "in" / "b", root):
        check_inside(folder, root)
        check_inside(folder, tmp_path / "link-to-root")
    check_inside(tmp_path / "link-to-root" / "a", root)
    for folder in (root / "out", root / "out" / "b", root / "loose", root / ".." / "outside", tmp_path / "multirun2"):
        with pytest.raises(ValueError, match=r"leads to .*, which is not in .*multirun: remove the symbolic link"):
            check_inside(folder, root)


@pytest.mark.parametrize(
    ("option", "path", "name"),
    [
        ("tiny", "tiny:0", "tiny"),
        ("smollm2_135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2_135m"),
        ("custom", "Org/Model-7B", "Model-7B"),
        ("custom", "/home/me/models/mine/", "mine"),
        ("custom", "", "custom"),
    ],
)
def test_run_names_have_the_models_option_or_the_last_part_of_its_path(option: str, path: str, name: str) -> None:
    assert model_name({"model": {"path": path}}, {"model": option}) == name
