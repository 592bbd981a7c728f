"""Which model gives the initial answers: one row per option."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stasc.choices.init import Evolving, Fixed
from stasc.cli.parts import build

CONF = Path(__file__).parents[2] / "conf" / "init"

ROWS = {  # option: class, the model that answers, whether in every iteration
    "fixed": (Fixed, "M_0", False),
    "evolving": (Evolving, "M_prev", True),
}


@pytest.mark.parametrize("option", ROWS)
def test_an_option_names_the_model_that_answers_and_whether_it_does_so_anew(option: str) -> None:
    kind, model, anew = ROWS[option]
    init = build(OmegaConf.create({"init": OmegaConf.load(CONF / f"{option}.yaml")}), "init")
    assert init == kind()
    assert init("M_0", "M_prev") == model
    assert init.anew is anew


def test_every_option_has_a_row() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROWS)


@pytest.mark.parametrize("kind", [Fixed, Evolving])
def test_a_misspelt_setting_fails_when_built(kind: type) -> None:
    with pytest.raises(TypeError, match="modle"):
        kind(modle="M_0")


@pytest.mark.parametrize("kind", [Fixed, Evolving])
def test_sampling_anew_belongs_to_the_option_and_is_no_setting(kind: type) -> None:
    with pytest.raises(TypeError, match="anew"):
        kind(anew=True)
