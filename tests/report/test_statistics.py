"""Intervals and tests, against published examples, other libraries, identities, and simulations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_table
from statsmodels.stats.multitest import multipletests

from stasc.report.statistics import intervals, resampling
from stasc.report.statistics.crossing import (
    Components,
    Pool,
    crossed,
    foreseen,
    mean_squares,
    pooled_between,
    pooled_within,
)
from stasc.report.statistics.intervals import (
    clustered,
    contrasts,
    correlation,
    mcnemar,
    p_values,
    pass_at_k,
    proportion,
    questions_needed,
)

DARWIN = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], float)  # maize, crossed minus selfed
PILOT_PLANT = np.array([60, 72, 54, 68, 52, 83, 45, 80], float)  # Box, Hunter and Hunter: T, C, K in standard order
FILTRATION = np.array([45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96], float)  # Montgomery: A to D
BH95 = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.324, 0.4262, 0.5719, 0.6528, 0.759, 1]


def standard_order(factors: int) -> np.ndarray:
    return np.array([list(reversed(signs)) for signs in itertools.product([-1.0, 1.0], repeat=factors)])


def effects(values: np.ndarray, names: str) -> dict[str, float]:
    found = contrasts(standard_order(len(names)))
    return {"".join(names[i] for i in chosen): float(weights @ values) for chosen, weights in found.items()}


def table(rng: np.random.Generator, n: int = 60, seeds: int = 3, seed_sd: float = 1.0) -> np.ndarray:
    return rng.normal(size=(n, 1)) + seed_sd * rng.normal(size=(1, seeds)) + rng.normal(size=(n, seeds))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_newcombe(right: int, n: int, low: float, high: float) -> None:
    assert proportion(right, n) == pytest.approx((low, high), abs=5e-5)


def test_the_exact_interval_of_none_of_ten_ends_at_the_tenth_root() -> None:
    assert proportion(0, 10, "exact") == pytest.approx((0, 1 - 0.025**0.1))
    assert proportion(0, 10, "exact")[1] == pytest.approx(0.3085, abs=5e-5)


def test_mcnemar_of_a_published_table() -> None:
    found = mcnemar(150, 86, 1600)
    assert found.p == pytest.approx(3.716e-5, rel=1e-3)
    assert (found.difference, found.se) == pytest.approx((0.0400, 0.009549), abs=5e-7)
    assert (found.low, found.high) == pytest.approx((0.0213, 0.0587), abs=5e-5)
    z = found.difference * found.n / math.sqrt(found.b + found.c)
    assert z**2 == pytest.approx(17.3559, abs=5e-5)


@pytest.mark.parametrize(("b", "c", "p", "can"), [(5, 0, 0.0625, False), (6, 0, 0.03125, True), (0, 0, 1.0, False)])
def test_fewer_than_six_changed_answers_cannot_reach_five_percent(b: int, c: int, p: float, can: bool) -> None:
    found = mcnemar(b, c, 20)
    assert (found.p, found.can_reach) == (p, can)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_agrees_with_statsmodels(b: int, c: int) -> None:
    oracle = mcnemar_table([[3, b], [c, 4]], exact=True).pvalue
    assert mcnemar(b, c, b + c + 7).p == pytest.approx(oracle if b + c else 1.0)


def test_the_effects_of_the_pilot_plant() -> None:
    assert PILOT_PLANT.mean() == 64.25
    assert effects(PILOT_PLANT, "TCK") == pytest.approx(
        {"T": 23, "C": -5, "K": 1.5, "TC": 1.5, "TK": 10, "CK": 0, "TCK": 0.5}
    )


def test_the_effects_of_the_filtration_rate() -> None:
    found = effects(FILTRATION, "ABCD")
    named = {"A": 21.625, "B": 3.125, "C": 9.875, "D": 14.625, "AC": -18.125, "AD": 16.625, "ABCD": 1.375}
    assert len(found) == 15
    assert {name: found[name] for name in named} == pytest.approx(named)


def test_an_effect_is_twice_the_coefficient_of_a_regression() -> None:
    signs = standard_order(4)
    columns = {chosen: np.prod(signs[:, chosen], axis=1) for chosen in contrasts(signs)}
    coefficients = np.asarray(sm.OLS(FILTRATION, sm.add_constant(np.column_stack([*columns.values()]))).fit().params)
    assert [weights @ FILTRATION for weights in contrasts(signs).values()] == pytest.approx(2 * coefficients[1:])


def test_the_effects_account_for_all_differences_between_cells() -> None:
    squares = sum(effect**2 for effect in effects(FILTRATION, "ABCD").values())
    assert ((FILTRATION - FILTRATION.mean()) ** 2).sum() == pytest.approx(2 ** (4 - 2) * squares)


def test_swapping_a_factors_levels_flips_the_effects_that_contain_it_only() -> None:
    signs = standard_order(3)
    swapped = contrasts(signs * np.array([1, -1, 1]))
    for chosen, weights in contrasts(signs).items():
        assert swapped[chosen] @ PILOT_PLANT == pytest.approx(weights @ PILOT_PLANT * (-1 if 1 in chosen else 1))


def test_an_effect_is_averaged_over_the_levels_of_what_else_varies() -> None:
    signs = np.vstack([standard_order(1)] * 3)  # one factor, at three levels of another setting
    assert contrasts(signs)[0,] @ np.array([1, 2, 1, 4, 1, 9], float) == pytest.approx((1 + 3 + 8) / 3)


def test_with_one_seed_the_interval_is_that_of_a_mean_over_questions() -> None:
    found = crossed(DARWIN[:, None])
    oracle = stats.ttest_1samp(DARWIN, 0)
    interval = oracle.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(0.049703, abs=5e-7)
    assert found.se_seed is None
    assert "conditional on one training run" in found.method


def test_the_crossed_interval_of_a_small_table_is_as_worked_out_by_hand() -> None:
    # Means of questions 2, 4, 6, of seeds 3, 5; residual -1, 1, 0 and 1, -1, 0.
    found = crossed(np.array([[0.0, 4], [4, 4], [5, 7]]))
    ms_question, ms_seed, ms_residual = 2 * 8 / 2, 3 * 2 / 1, 4 / 2
    assert found.se == pytest.approx(math.sqrt((ms_question + ms_seed - ms_residual) / 6))
    assert found.df == pytest.approx(12**2 / (ms_question**2 / 2 + ms_seed**2 / 1 + ms_residual**2 / 2))
    assert found.se_question == pytest.approx(math.sqrt(8 / 6))
    assert found.se_seed == pytest.approx(math.sqrt(4 / 6))
    assert (found.value, found.high) == pytest.approx((4, 4 + stats.t.ppf(0.975, found.df) * found.se))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_the_parts_of_a_standard_error_add_up_and_it_is_no_less_than_either(seed: int, seeds: int) -> None:
    one = table(np.random.default_rng(seed), 20, seeds)
    found = crossed(one)
    assert found.se_seed is not None
    parts = table_variances(one)
    assert found.se**2 >= found.se_question**2 + found.se_seed**2 - 1e-12
    assert found.se**2 == pytest.approx(max(found.se_question**2 + found.se_seed**2, *parts))
    assert found.df >= seeds - 1


def table_variances(one: np.ndarray) -> tuple[float, float]:
    """Returns the variance of the mean if only questions, or only seeds, were random."""
    return tuple(float(stats.sem(one.mean(axis=axis)) ** 2) for axis in (1, 0))  # type: ignore[return-value]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_data_have_the_bounds_of_the_rule_of_three(seeds: int, value: float) -> None:
    found = crossed(np.full((60, seeds), value))
    assert (found.value, found.low, found.high) == pytest.approx((value, value - 3 / 60, value + 3 / 60))
    assert found.method == "rule of three"
    assert not math.isnan(found.p)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_p_value_of_constant_data_is_that_of_the_rule_of_three(seeds: int) -> None:
    assert crossed(np.full((10, seeds), 0.5)).p == pytest.approx(math.exp(-5))  # of ten, none under 1 - x: e^(-10 x)
    assert crossed(np.full((10, seeds), 0.3)).p == pytest.approx(0.05, abs=1e-3)  # its interval ends at 0
    assert crossed(np.zeros((10, seeds))).p == 1
    assert clustered(np.full(10, 0.7) - np.full(10, 0.2), 2 * [*range(5)]).p == pytest.approx(math.exp(-5))
    assert crossed(np.full((1, seeds), 0.5)).p == 1


def test_no_p_value_is_zero() -> None:
    assert crossed(np.ones((2000, 1))).p > 0
    assert p_values(*map(np.array, (1.0, 1e-9, 500.0, 1.0))) > 0
    assert mcnemar(5000, 0, 5000).p > 0


def test_one_question_has_no_interval() -> None:
    found = crossed(np.array([[1.0, 0, 1]]))
    assert (found.low, found.high) == (None, None)


def test_a_paired_difference_is_more_certain_by_its_correlation() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=50)
    second = first + 0.3 * rng.normal(size=50)
    found = crossed((first - second)[:, None])
    assert found.se == pytest.approx(stats.sem(first - second))
    assert correlation(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)


def test_clustered_differences_agree_with_statsmodels() -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(9), [1, 2, 3, 4, 5, 6, 7, 8, 9])
    difference = rng.normal(size=45) + rng.normal(size=9)[clusters]
    settings = {"groups": clusters, "use_correction": False}
    oracle = sm.OLS(difference, np.ones(45)).fit(cov_type="cluster", cov_kwds=settings)
    found = clustered(difference, [f"passage {one}" for one in clusters])
    assert found.se == pytest.approx(float(oracle.bse[0]))
    assert found.df == 8


def test_clusters_of_one_size_are_their_means() -> None:
    difference = np.random.default_rng(2).normal(size=60)
    means = difference.reshape(12, 5).mean(axis=1)
    found = clustered(difference, np.repeat(np.arange(12), 5).tolist())
    assert found.se == pytest.approx(means.std(ddof=0) / math.sqrt(12))


def test_fewer_than_five_clusters_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"4 clusters of questions: .* at least 5"):
        clustered(np.arange(8.0), [0, 0, 1, 1, 2, 2, 3, 3])


def test_the_bootstrap_of_one_seed_has_the_standard_error_of_a_mean() -> None:
    means = resampling.pigeonhole(DARWIN[None, :, None])
    assert means.std() == pytest.approx(DARWIN.std(ddof=0) / math.sqrt(15), rel=0.02)
    assert means.mean() == pytest.approx(DARWIN.mean(), rel=0.02)


def test_the_bootstrap_draws_questions_and_seeds_apart_and_alike_for_all_tables() -> None:
    one = table(np.random.default_rng(3), 50, 4)
    means = resampling.pigeonhole(np.stack([one, one + 1, 2 * one]), draws=2000)
    assert means[:, 1] == pytest.approx(means[:, 0] + 1)
    assert means[:, 2] == pytest.approx(2 * means[:, 0])
    rng, slow = np.random.default_rng(4), []
    for _ in range(2000):
        slow.append(one[rng.integers(0, 50, 50)][:, rng.integers(0, 4, 4)].mean())
    assert means[:, 0].std() == pytest.approx(np.std(slow), rel=0.1)


def test_the_bootstrap_is_the_same_every_time() -> None:
    one = table(np.random.default_rng(5))[None]
    assert np.array_equal(resampling.pigeonhole(one, 50), resampling.pigeonhole(one, 50))


def test_sign_flips_of_darwins_maize_are_gone_through_one_by_one() -> None:
    assert resampling.sign_flip(DARWIN[None])[0] == 1726 / 32768


def test_many_sign_flips_agree_with_scipy() -> None:
    differences = np.random.default_rng(6).normal(0.3, 1, size=(3, 40))
    oracle = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=9999, axis=1, vectorized=True, rng=7
    )
    assert resampling.sign_flip(differences) == pytest.approx(oracle.pvalue, abs=0.015)


def test_sign_flips_of_no_difference_say_so() -> None:
    assert resampling.sign_flip(np.zeros((2, 30))).tolist() == [1, 1]


def test_holms_adjusted_values() -> None:
    assert resampling.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_and_hochbergs_example() -> None:
    assert sum(p <= 0.05 for p in resampling.benjamini_hochberg(BH95)) == 4
    assert sum(p <= 0.05 for p in resampling.holm(BH95)) == 3
    assert sum(p * 15 <= 0.05 for p in BH95) == 3


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_adjusted_values_agree_with_statsmodels(p: list[float]) -> None:
    assert resampling.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist() if p else [])
    assert resampling.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1].tolist() if p else [])


def test_simultaneous_intervals_of_one_effect_are_plain_ones_and_of_many_wider() -> None:
    rng = np.random.default_rng(8)
    means = rng.normal(size=(20_000, 15))
    assert resampling.simultaneous(means[:, :1], np.zeros(1)) == pytest.approx(1.96, abs=0.05)
    independent = stats.norm.ppf((1 + 0.95 ** (1 / 15)) / 2)
    assert resampling.simultaneous(means, np.zeros(15)) == pytest.approx(independent, abs=0.06)


@pytest.mark.parametrize(("sigma2", "samples", "n"), [(0, 1, 969), (1 / 3, 1, 3876), (1 / 3, 10, 1260)])
def test_questions_needed_for_three_points(sigma2: float, samples: int, n: int) -> None:
    assert questions_needed(0.03, 1 / 9, sigma2, samples) == n


def test_the_detectable_effect_is_found_four_times_in_five() -> None:
    rng, n = np.random.default_rng(9), 40
    effect = intervals.detectable(1 / math.sqrt(n), n - 1)
    found = [stats.ttest_1samp(rng.normal(effect, 1, n), 0).pvalue < 0.05 for _ in range(4000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_a_foreseen_standard_error_is_that_of_its_parts() -> None:
    assert foreseen(Components(4.0, 1.0, 2.0), 100, 2) == pytest.approx(math.sqrt(4 / 100 + 1 / 2 + 2 / 200))


@pytest.mark.parametrize("seed", range(5))
def test_more_questions_or_seeds_are_never_foreseen_to_be_worse(seed: int) -> None:
    one = table(np.random.default_rng(seed), n=40, seeds=2)
    parts = crossed(one).parts
    now = foreseen(parts, 40, 2)
    assert now >= crossed(one).se * (1 - 1e-9)
    assert foreseen(parts, 80, 2) <= now and foreseen(parts, 40, 4) <= now


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(k: int) -> None:
    for right in range(6):
        answers = [True] * right + [False] * (5 - right)
        share = np.mean([any(draw) for draw in itertools.combinations(answers, k)])
        assert pass_at_k(np.array([right]), 5, k)[0] == pytest.approx(share)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("seed_sd", [0.0, 0.01, 0.03])
def test_the_crossed_interval_covers_the_truth_as_often_as_it_says(seeds: int, seed_sd: float) -> None:
    rng, covered = np.random.default_rng(10), 0
    for _ in range(2000):
        found = crossed(accuracy_differences(rng, 200, seeds, seed_sd))
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
    assert 0.935 <= covered / 2000 <= 0.99


def accuracy_differences(rng: np.random.Generator, n: int, seeds: int, seed_sd: float) -> np.ndarray:
    """Draws differences of two variants without a true difference: answers to the same questions in several runs."""
    easy = rng.beta(1, 1, (n, 1))
    drift = rng.normal(0, seed_sd, (2, 1, seeds))
    return np.subtract(*(rng.random((2, n, seeds)) < np.clip(easy + drift, 0, 1)).astype(float))


def test_holm_over_three_main_effects_is_rarely_wrong_when_nothing_matters() -> None:
    rng, flips, both = np.random.default_rng(11), 0, 0
    weights = np.stack([*contrasts(standard_order(3)).values()])[:3]
    for _ in range(1000):
        cells = (rng.random((8, 100, 3)) < rng.beta(1, 1, (1, 100, 1))).astype(float)
        tables = np.einsum("ec,cqs->eqs", weights, cells)
        flips += min(resampling.holm(resampling.sign_flip(tables.mean(axis=2), draws=500))) < 0.05
        both += min(resampling.holm([crossed(one).p for one in tables])) < 0.05
    assert flips / 1000 <= 0.06
    assert both / 1000 <= 0.06


def test_the_contrasts_of_a_factorial_have_the_pooled_mean_squares_on_average() -> None:
    cells = np.random.default_rng(12).normal(size=(8, 20, 3))
    weights = np.stack([*contrasts(standard_order(3)).values()])
    _, seed, residual = mean_squares(np.einsum("ec,cqs->eqs", weights, cells))
    pool = pooled_between(cells, "all effects")
    assert pool and pool.times((weights**2).sum(axis=1)).seed == pytest.approx(np.full(7, seed.mean()))
    assert pool.times((weights**2).sum(axis=1)).residual == pytest.approx(np.full(7, residual.mean()))
    assert (pool.df_seed, pool.df_residual) == (7 * 2, 7 * 19 * 2)


def test_two_cells_have_no_other_contrast_to_pool_with() -> None:
    cells = np.random.default_rng(13).normal(size=(2, 20, 3))
    assert pooled_between(cells, "") is None
    pool = pooled_within([*cells], "variants")
    assert pool and pool.seed == pytest.approx(np.mean([20 * one.mean(axis=0).var(ddof=1) for one in cells]))
    assert pool.df_seed == 4
    assert pooled_within([cells[0], cells[1][:, :1]], "") is None, "one seed tells nothing of how seeds differ"


@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_the_wider_of_own_and_pooled_interval_counts_and_the_larger_p(spread: float) -> None:
    """Seeds have the same mean, or differ widely; the pool has a moderate variance."""
    rng = np.random.default_rng(14)
    one = rng.normal(size=(50, 3))
    one += 0.3 + spread * np.array([-1, 0, 1]) - one.mean(axis=0)
    pool = Pool(np.array(11.0), np.array(1.0), 20.0, 980.0, "others")
    own, found = crossed(one), crossed(one, pool=pool)
    ms_question = 3 * one.mean(axis=1).var(ddof=1)
    se = math.sqrt((ms_question + 10) / 150)
    df = max(20, (ms_question + 10) ** 2 / (ms_question**2 / 49 + 11**2 / 20 + 1 / 980))
    p = 2 * stats.t.sf(abs(own.value) / se, df)
    assert own.high is not None and found.high is not None
    assert found.high == pytest.approx(max(own.high, own.value + stats.t.ppf(0.975, df) * se))
    assert found.p == pytest.approx(max(own.p, p))
    assert ("pooled over others" in found.method) == (spread == 0)
    assert found.se_seed == pytest.approx(own.se_seed if spread else math.sqrt(10 / 150))
