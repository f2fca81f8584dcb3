"""Intervals and tests of a comparison against SciPy's and statsmodels' on the same numbers."""

import numpy as np
import pytest
from scipy import stats

from cl.statistics import (
    band,
    described,
    ellipse,
    equivalence,
    estimate,
    holm,
    iqm_estimate,
    iqm_tail,
    statistic_of,
    summary,
    two_sided,
)


def pairs(n, shift=0.05, seed=0):
    rng = np.random.default_rng(seed)
    before = rng.uniform(0.2, 0.9, n)
    return before + shift + rng.normal(0, 0.05, n), before


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 30])
@pytest.mark.parametrize("shift", [0.0, 0.05, -0.2])
def test_paired_p_values_are_scipys(n, shift):
    a, b = pairs(n, shift)
    assert two_sided(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [3, 5, 12])
@pytest.mark.parametrize("within", [0.01, 0.1, 0.3])
def test_equivalence_p_values_are_scipys_two_one_sided_tests(n, within):
    a, b = pairs(n, 0.02)
    above = stats.ttest_1samp(a - b, -within, alternative="greater").pvalue
    below = stats.ttest_1samp(a - b, within, alternative="less").pvalue
    assert equivalence(a - b, within) == pytest.approx(max(above, below), rel=1e-9)


def test_equivalence_holm_and_intervals_are_statsmodels():
    weightstats = pytest.importorskip("statsmodels.stats.weightstats")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    a, b = pairs(6, 0.02)
    theirs = weightstats.ttost_paired(a, b, -0.05, 0.05)[0]
    assert equivalence(a - b, 0.05) == pytest.approx(theirs, rel=1e-9)
    low, high = weightstats.DescrStatsW(a - b).tconfint_mean()
    e = estimate(a - b)
    assert (e.low, e.high) == pytest.approx((low, high), rel=1e-12)
    p = [0.001, 0.2, 0.03, 0.03, 0.9, 0.012]
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_without_any_spread_there_is_nothing_to_test():
    assert two_sided([0.1, 0.1, 0.1]) is None and equivalence([0.001] * 3, 0.01) is None
    assert two_sided([0.0, 0.0]) == 1.0, "no difference is no evidence of one"
    assert equivalence([0.2, 0.2], 0.01) == 1.0
    assert two_sided([0.3]) is None and equivalence([0.0], 0.01) is None


def test_of_ten_policies_the_interquartile_mean_stands():
    x = np.r_[np.linspace(0.1, 0.2, 9), 50.0]
    assert statistic_of("rl", 10) == "iqm" and statistic_of("rl", 9) == "mean"
    assert statistic_of("vision", 10) == "mean"
    middle = np.sort(x)[2:8].mean()
    assert summary(x, "iqm").mean == pytest.approx(middle) == stats.trim_mean(x, 0.25)
    assert summary(x, "iqm") == iqm_estimate(x)
    assert two_sided(x, "iqm") == 2 * iqm_tail(x, 0.0, above=True)
    low, high = iqm_tail(x, -1.0, above=True), iqm_tail(x, 1.0, above=False)
    assert equivalence(x, 1.0, "iqm") == max(low, high)


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("statistic", ["mean", "iqm"])
def test_a_band_is_the_interval_of_every_column(n, statistic):
    x = np.random.default_rng(1).normal(size=(n, 4))
    mean, low, high = band(x, statistic)
    each = [summary(column, statistic) for column in x.T]
    assert mean == pytest.approx([e.mean for e in each])
    assert low == pytest.approx([e.low for e in each])
    assert high == pytest.approx([e.high for e in each])


def test_a_band_has_no_value_where_a_seed_has_none():
    x = np.array([[1.0, np.nan], [2.0, 3.0]])
    mean, low, high = band(x)
    assert mean[0] == 1.5 and np.isnan([mean[1], low[1], high[1]]).all()
    for part in band(x[:1]):
        np.testing.assert_array_equal(part, x[0])


def test_the_methods_have_names():
    assert described(5) == "mean, 95 % t-interval"
    assert described(10) == "mean, 95 % stratified bootstrap"
    assert described(12, "iqm") == "interquartile mean, 95 % stratified bootstrap"
    assert described(1) == "one seed: no interval"


def test_the_ellipse_is_hotellings_region():
    x = np.random.default_rng(2).multivariate_normal([0.5, 0.2], [[0.04, 0.01], [0.01, 0.02]], 7)
    centre, half, directions = ellipse(x)
    turn = np.linspace(0, 2 * np.pi, 11)
    ring = centre + (np.stack([np.cos(turn), np.sin(turn)], 1) * half) @ directions.T
    gaps = ring - x.mean(0)
    t2 = 7 * np.einsum("ni,ij,nj->n", gaps, np.linalg.inv(np.cov(x.T)), gaps)
    border = 2 * 6 / 5 * stats.f.ppf(0.95, 2, 5)
    assert t2 == pytest.approx(np.full(11, border))
    assert ellipse(x[:3]) is None


def test_the_ellipse_covers_the_truth_95_times_in_100():
    rng, hits = np.random.default_rng(3), 0
    for _ in range(800):
        centre, half, directions = ellipse(rng.normal(size=(5, 2)))
        hits += np.sum(((-centre @ directions) / half) ** 2) <= 1
    assert hits / 800 == pytest.approx(0.95, abs=0.025)


def test_points_on_a_line_have_a_region_without_width():
    centre, half, _ = ellipse(np.array([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.5, 0.0]]))
    assert half[0] == pytest.approx(0, abs=1e-12) and half[1] > 0.1
