"""Coverage of the report's intervals, and its false positives, in sweeps without a true effect."""

from __future__ import annotations

import numpy as np
import pytest
import simulation
from simulation import NOISES, Setting, simulate, stopping

HELD = [
    *(Setting("2^3", 2, 7, 200, noise) for noise in NOISES),
    Setting("2^3", 3, 7, 200, "unequal"),
    Setting("2^3", 8, 2, 50),
    Setting("2^4", 3, 5, 50),
    Setting("2^2", 2, 7, 200, "unequal"),
    Setting("2^2", 5, 5, 50),
    Setting("2 levels", 3, 5, 200),
    Setting("3 levels", 2, 7, 200),
]
# Bounds that do not hold: `make simulate` shows all such settings. In none is the report falsely sure too often.
MISSED = {
    Setting("2 levels", 2, 7, 200, "unequal"): ["coverage of a variant too low"],  # 0.908
    Setting("2^3", 3, 0, 50): ["coverage too high"],  # 0.987
}


@pytest.mark.parametrize(
    "setting", [*HELD, *MISSED], ids=lambda one: f"{one.design}-{one.seeds}-{one.sd}-{one.questions}-{one.noise}"
)
def test_intervals_cover_and_the_report_is_rarely_sure_of_what_is_not_there(setting: Setting) -> None:
    assert simulate(setting, 2000).misses() == MISSED.get(setting, [])


def test_seeds_added_until_a_choice_is_sure_are_more_often_wrong() -> None:
    setting = Setting("2^3", 8, 5, 200, "shared")
    assert stopping(setting, 500) > simulation.FALSE_SURE >= simulate(setting, 500).sure


def test_the_simulation_decides_as_the_report_does() -> None:
    setting = Setting("2^2", 3, 5, 50)
    contrasts = simulation._contrasts(setting)
    (tables,) = 100 * simulation._answers(np.random.default_rng(0), setting, 1)
    tests, _ = simulation._sure(contrasts, tables[None])
    for i, effect in enumerate(simulation.effects.estimate(contrasts, tables, "correction", 1, 1).effects):
        assert effect.interval.low == pytest.approx(tests.means.low[0, i])
        assert effect.p_crossed == pytest.approx(tests.means.p[0, i])
