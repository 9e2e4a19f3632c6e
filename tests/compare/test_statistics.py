"""Statistics against statsmodels, lifelines and enumeration."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter
from lifelines.utils import restricted_mean_survival_time
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.nonparametric import rank_compare_2indep
from statsmodels.stats.power import TTestIndPower, TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from optlab.compare import statistics

A, B = np.array([0.97, 0.981, 0.975, 0.99, 0.985]), np.array([0.96, 0.972, 0.968, 0.979, 0.971])
FEW = st.lists(st.integers(-50, 50).map(float), min_size=2, max_size=8)


@given(FEW.filter(lambda x: len(set(x)) > 1))
def test_a_mean_has_students_interval(sample):
    oracle = DescrStatsW(sample)
    found = statistics.mean(sample)
    np.testing.assert_allclose((found.low, found.high), oracle.tconfint_mean(), rtol=1e-9, atol=1e-9)


@given(FEW.filter(lambda x: len(set(x)) > 1), FEW.filter(lambda x: len(set(x)) > 1))
def test_welch_is_statsmodels(a, b):
    oracle = CompareMeans(DescrStatsW(a), DescrStatsW(b))
    found = statistics.welch(a, b)
    np.testing.assert_allclose((found.low, found.high), oracle.tconfint_diff(usevar="unequal"), rtol=1e-8, atol=1e-8)
    assert found.p == pytest.approx(oracle.ttest_ind(usevar="unequal")[1])


def test_paired_is_the_t_test_of_the_differences():
    found, oracle = statistics.paired(A, B), stats.ttest_rel(A, B)
    assert found.p == pytest.approx(oracle.pvalue)
    np.testing.assert_allclose((found.low, found.high), tuple(oracle.confidence_interval(0.95)))


def test_paired_samples_have_one_length():
    with pytest.raises(ValueError, match="equally long, got 5 and 4"):
        statistics.paired(A, B[:4])


def test_one_repetition_has_no_interval():
    for found in (statistics.mean([1.0]), statistics.welch([1.0], [2.0]), statistics.paired([1.0], [2.0])):
        assert math.isnan(found.low)
        assert math.isnan(found.p)


def test_samples_without_spread_have_no_interval_and_are_no_difference_where_they_are_equal():
    alike, others = [0.1] * 3, [0.7] * 3  # whose floating mean isn't 0.1
    for found in (statistics.mean(alike), statistics.welch(alike, others), statistics.paired([0.9, 0.7], [0.8, 0.6])):
        assert math.isnan(found.low)
        assert math.isnan(found.p)
    for test in (statistics.welch, statistics.paired):
        found = test(alike, alike)
        assert (found.value, found.p) == (0.0, 1.0)
        assert math.isnan(found.high)


@settings(max_examples=10)  # statsmodels collects garbage in every call
@given(st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_holm_is_statsmodels(percent):
    p = np.array(percent) / 100
    np.testing.assert_allclose(statistics.holm(p), multipletests(p, method="holm")[1])


def test_holm_counts_what_could_not_be_tested():
    np.testing.assert_allclose(statistics.holm([0.01, math.nan, 0.02]), [0.03, math.nan, 0.04])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # statsmodels', of samples without spread
@given(FEW, FEW)
def test_the_probability_is_brunner_and_munzels(a, b):
    found, oracle = statistics.probability_above(a, b), rank_compare_2indep(a, b)
    assert found.value == pytest.approx(oracle.prob1)
    if oracle.var > 0:
        low, high = oracle.conf_int()
        np.testing.assert_allclose((found.low, found.high), (max(low, 0), min(high, 1)))


TIMES = np.array([3.0, 5, 5, 8, 10, 10, 10])
REACHED = np.array([True, True, False, True, True, False, False])


def test_survival_is_lifelines():
    fit = KaplanMeierFitter().fit(TIMES, REACHED)
    at, shares = statistics.survival(TIMES, REACHED)
    np.testing.assert_allclose(shares, fit.predict(at))
    assert statistics.median_time(TIMES, REACHED) == fit.median_survival_time_
    for horizon in (4, 8, 10):
        assert statistics.restricted_mean(TIMES, REACHED, horizon) == pytest.approx(
            restricted_mean_survival_time(fit, horizon)
        )


def test_a_target_that_half_never_reach_has_no_median():
    assert statistics.median_time([10, 10, 3], [False, False, True]) == math.inf


def test_without_censoring_a_ratio_is_that_of_geometric_means():
    a, b = np.array([60.0, 75, 70]), np.array([100.0, 90, 110])
    found = statistics.time_ratio(a, [True] * 3, b, [True] * 3)
    oracle = CompareMeans(DescrStatsW(np.log(a)), DescrStatsW(np.log(b))).tconfint_diff(usevar="unequal")
    assert found.value == pytest.approx(np.exp(np.log(a).mean() - np.log(b).mean()))
    np.testing.assert_allclose((found.low, found.high), np.exp(oracle))


def test_a_censored_ratios_interval_is_where_the_exact_rank_test_is_silent():
    a, b = np.array([60.0, 75, 70, 82, 66]), np.array([100.0, 93, 111, 300, 300])
    found = statistics.time_ratio(a, [True] * 5, b, [True, True, True, False, False])
    assert found.value == pytest.approx(70 / 111)
    silent = lambda r, late: stats.mannwhitneyu(a, r * np.array([100.0, 93, 111, *late]), method="exact").pvalue > 0.05
    earliest, never = [301, 302], [1e6, 2e6]  # what the censored runs may have come to
    assert silent(found.high * 0.999, earliest)
    assert not silent(found.high * 1.001, earliest)
    assert not silent(found.high * 1.001, never)
    assert silent(found.low + 1e-4, never)


def test_a_target_that_one_side_never_reaches_bounds_the_ratio():
    never, early = ([300.0] * 4, [False] * 4), ([50.0] * 4, [True] * 4)
    found = statistics.time_ratio(*early, *never)
    assert (found.value, found.low, found.high) == (0, 0, 50 / 300)
    found = statistics.time_ratio(*never, *early)
    assert (found.value, found.low, found.high) == (math.inf, 6, math.inf)


def test_three_censored_runs_a_side_have_no_interval():
    found = statistics.time_ratio([1.0, 2, 3], [True] * 3, [2.0, 3, 9], [True, True, False])
    assert math.isnan(found.low)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 3)])
def test_rank_counts_are_those_of_all_orders(n, m):
    counts = np.zeros(n * m + 1)
    for chosen in itertools.combinations(range(n + m), n):
        counts[sum(c - i for i, c in enumerate(chosen))] += 1
    np.testing.assert_array_equal(statistics._rank_counts(n, m), counts)


@given(st.lists(st.integers(-9, 9).map(float), min_size=1, max_size=7))
def test_best_of_is_the_mean_over_all_choices(scores):
    oracle = [np.mean([max(c) for c in itertools.combinations(scores, k)]) for k in range(1, len(scores) + 1)]
    np.testing.assert_allclose(statistics.best_of(scores), oracle, atol=1e-12)


def test_a_diverged_trial_is_the_worst_of_any_choice():
    np.testing.assert_allclose(statistics.best_of([-np.inf, 1.0, 2.0]), [-np.inf, 5 / 3, 2])


def test_the_order_flips_where_the_curves_cross():
    assert statistics.order_flip([1, 2, 3, 5], [2, 2.5, 2.7, 3]) == 3
    assert statistics.order_flip([1, 2, 3], [0, 1, 2]) is None
    assert statistics.order_flip([1, 2], [1, 2]) is None


def test_sensitivity_is_the_width_of_a_valley():
    rates = 10.0 ** np.linspace(-4, 0, 401)
    losses = 1 + (np.log10(rates) + 2) ** 2  # within 25 % of the best one on half a decade to either side
    assert statistics.sensitivity(rates, losses, 0.25) == pytest.approx(1.0, abs=1e-4)
    losses[rates > 1.0001e-2] = np.inf
    assert statistics.sensitivity(rates, losses, 0.25) == pytest.approx(0.5, abs=1e-4)


def test_profiles_are_shares_of_workloads():
    found = statistics.performance_profiles({"a": [10, 20, np.inf], "b": [20, 10, np.inf]}, [1, 1.9, 2, 100])
    np.testing.assert_allclose(found["a"], [1 / 3, 1 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(found["b"], found["a"])


@pytest.mark.parametrize("n", [2, 5, 12])
@pytest.mark.parametrize("difference", [0.0, 0.5, 2.0])
def test_power_is_statsmodels_if_paired_and_welchs_if_not(n, difference):
    assert statistics.power(difference, n, is_paired=True) == pytest.approx(
        TTestPower().power(difference, n, 0.05), abs=1e-6
    )
    draws = np.random.default_rng(0).normal(size=(2, 40_000, n))
    p = stats.ttest_ind(draws[0] + difference, draws[1], axis=1, equal_var=False).pvalue
    assert statistics.power(difference, n) == pytest.approx(np.mean(p < 0.05), abs=0.007)  # three standard errors
    # With two repetitions it is far below the pooled test's, which doesn't hold its level where the spreads differ.
    assert statistics.power(difference, n) <= TTestIndPower().power(difference, n, 0.05) + 1e-9


def test_detectable_inverts_the_power():
    assert statistics.detectable(5) == pytest.approx(2.08, abs=1e-2)  # SDs: what five studies find four times of five
    difference = statistics.detectable(5, comparisons=4)
    assert statistics.power(difference, 5, level=0.05 / 4) == pytest.approx(0.8)
    assert statistics.detectable(1) == math.inf


@pytest.mark.parametrize("is_paired", [True, False])
@pytest.mark.parametrize("comparisons", [1, 4, 10])
def test_two_repetitions_can_find_only_what_is_huge(is_paired, comparisons):
    difference = statistics.detectable(2, comparisons=comparisons, is_paired=is_paired)
    assert 3 < difference < math.inf
    found = statistics.power(difference, 2, is_paired=is_paired, level=0.05 / comparisons)
    assert found == pytest.approx(0.8)


def test_students_interval_covers_what_it_says():
    draws = np.random.default_rng(0).normal(size=(1000, 5))
    found = [statistics.mean(x) for x in draws]
    assert 0.93 <= np.mean([e.low <= 0 <= e.high for e in found]) <= 0.97
