"""The variant's name, and what it is made of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_run import composed

import stasc
from stasc.cli.compose import variant

OPTIONS = {
    "init": {"_target_": "a.Init", "letter": "F"},
    "filter": {"_target_": "a.b.KeepAll"},
    "start": {"_target_": "a.Start", "letter": 3},
    "target": {"_target_": "a.Target", "suffix": ""},
    "loss": {"_target_": "a.Dpo"},
    "finetune": {"_target_": "a.Tune"},
}


def test_an_option_without_a_letter_or_suffix_has_the_name_of_its_class() -> None:
    assert variant(OPTIONS) == "Fkeepall3-dpo-tune"
    assert variant(OPTIONS, "finetune") == "-tune"
    assert variant({**OPTIONS, "init": None, "finetune": {}}) == "keepall3-dpo"


@pytest.mark.parametrize("group", ["init", "filter", "start"])
def test_every_option_has_a_letter_of_its_own(group: str) -> None:
    options = [path.stem for path in (Path(stasc.__file__).parents[2] / "conf" / group).glob("*.yaml")]
    letters = [composed(f"{group}={option}")[group].letter for option in options]
    assert all(re.fullmatch("[A-Z]", letter) for letter in letters) and len({*letters}) == len(letters) == len(options)


def test_one_module_imports_private_names_of_hydra() -> None:
    sources = Path(stasc.__file__).parent.rglob("*.py")
    private = re.compile(r"^\s*(from|import) (hydra|omegaconf)\.([\w.]*\.)?_", re.M)
    assert [path.name for path in sources if private.search(path.read_text())] == ["parts.py"]
