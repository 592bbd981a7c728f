"""Which model fine-tuning starts from: one row per option."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from stasc.choices.start import Evolving, Fixed

CONF = Path(__file__).parents[2] / "conf" / "start"

ROWS = {  # option: class, letter, the model that is trained
    "fixed": (Fixed, "F", "M_0"),
    "evolving": (Evolving, "E", "M_prev"),
}


@pytest.mark.parametrize("option", ROWS)
def test_an_option_names_the_model_that_is_trained(option: str) -> None:
    kind, letter, model = ROWS[option]
    start = instantiate(OmegaConf.load(CONF / f"{option}.yaml"))
    assert start == kind(letter)
    assert start("M_0", "M_prev") == model


def test_every_option_has_a_row_and_a_letter_of_its_own() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROWS)
    assert len({letter for _, letter, _ in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize("kind", [Fixed, Evolving])
def test_a_misspelt_setting_fails_when_built(kind: type) -> None:
    with pytest.raises(TypeError, match="leter"):
        kind(leter="F")
