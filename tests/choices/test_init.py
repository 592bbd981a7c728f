"""Which model gives the initial answers: one row per option."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from stasc.choices.init import Evolving, Fixed

CONF = Path(__file__).parents[2] / "conf" / "init"

ROWS = {  # option: class, letter, the model that answers, whether in every iteration
    "fixed": (Fixed, "F", "M_0", False),
    "evolving": (Evolving, "E", "M_prev", True),
}


@pytest.mark.parametrize("option", ROWS)
def test_an_option_names_the_model_that_answers_and_whether_it_does_so_anew(option: str) -> None:
    kind, letter, model, anew = ROWS[option]
    init = instantiate(OmegaConf.load(CONF / f"{option}.yaml"))
    assert init == kind(letter)
    assert init("M_0", "M_prev") == model
    assert init.anew is anew


def test_every_option_has_a_row_and_a_letter_of_its_own() -> None:
    assert {path.stem for path in CONF.glob("*.yaml")} == set(ROWS)
    assert len({letter for _, letter, _, _ in ROWS.values()}) == len(ROWS)


@pytest.mark.parametrize("kind", [Fixed, Evolving])
def test_a_misspelt_setting_fails_when_built(kind: type) -> None:
    with pytest.raises(TypeError, match="leter"):
        kind(leter="F")


@pytest.mark.parametrize("kind", [Fixed, Evolving])
def test_sampling_anew_belongs_to_the_option_and_is_no_setting(kind: type) -> None:
    with pytest.raises(TypeError, match="anew"):
        kind(letter="F", anew=True)
