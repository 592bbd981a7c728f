"""Which model fine-tuning starts from: one row per option."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from stasc.choices.start import Evolving, Fixed
from stasc.cli.parts import build

CONF = Path(__file__).parents[2] / "conf" / "start"

ROWS = {  # option: class, the model that is trained
    "fixed": (Fixed, "M_0"),
    "evolving": (Evolving, "M_prev"),
}


@pytest.mark.parametrize("option", ROWS)
def test_an_option_names_the_model_that_is_trained(option: str) -> None:
    kind, model = ROWS[option]
    start = build(OmegaConf.create({"start": OmegaConf.load(CONF / f"{option}.yaml")}), "start")
    assert start == kind()
    assert start("M_0", "M_prev") == model


def test_every_option_has_a_row() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROWS)


@pytest.mark.parametrize("kind", [Fixed, Evolving])
def test_a_misspelt_setting_fails_when_built(kind: type) -> None:
    with pytest.raises(TypeError, match="modle"):
        kind(modle="M_0")
