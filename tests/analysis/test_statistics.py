"""Statistics for small numbers of seeds, checked against calculations by hand, SciPy, and simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from upslope.analysis.across_environments import (
    between_quartiles,
    mean_estimate,
    profile,
    stratified_iqm,
    stratified_mean,
)
from upslope.analysis.records import read_record
from upslope.analysis.statistics import (
    calibrated,
    curve,
    difference_of_means,
    interval_of_mean,
    iqm_of,
    mean_band,
    mean_of,
    median_of,
    probability_of_improvement,
    returns_at,
    trimmed_half_width,
    variance,
)

ESTIMATES = {"mean": mean_of, "median": median_of, "iqm": iqm_of}


def ends(estimate):
    return (estimate.interval.low, estimate.interval.high)


def test_interval_of_the_mean_is_students():
    x = np.asarray([3.0, 1.0, 4.0, 1.0, 5.0])
    expected = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert ends(mean_of(x)) == pytest.approx((expected.low, expected.high))
    # By hand: mean 2, s = 1, t_{0.975, 2} = 4.30265, half = 4.30265/√3 = 2.48414.
    assert ends(mean_of(np.asarray([1.0, 2.0, 3.0]))) == pytest.approx((-0.48414, 4.48414), abs=1e-5)


@pytest.mark.parametrize("estimate", ESTIMATES.values(), ids=ESTIMATES)
@pytest.mark.parametrize("x", [[7.0], [7.0, 7.0, 7.0], [7.0, math.nan]], ids=["one", "all agree", "no score"])
def test_where_there_is_no_telling_there_is_no_interval(estimate, x):
    found = estimate(np.asarray(x))
    assert found.interval is None
    assert math.isnan(found.value) if math.nan in x else found.value == 7.0


def test_a_band_is_the_interval_at_every_point():
    x = np.random.default_rng(0).normal(size=(4, 6))
    x[0, 0], x[:, 1], x[1:, 2] = np.nan, np.nan, np.nan  # one seed missing, all missing, all but one missing
    x[:, 3] = 2.0
    band = mean_band(x)
    for i in (0, 4, 5):
        known = x[np.isfinite(x[:, i]), i]
        interval = interval_of_mean(known)
        assert (band.mean[i], band.low[i], band.high[i]) == pytest.approx((known.mean(), interval.low, interval.high))
    assert np.isnan([band.mean[1], band.low[1], band.low[2], band.high[2], band.low[3]]).all()
    assert (band.mean[2], band.mean[3]) == (x[0, 2], 2.0)


def test_the_interquartile_mean_leaves_a_quarter_out_on_each_side():
    assert iqm_of(np.asarray([100.0, 1, 2, 3, -50])).value == 2.0  # ⌊5/4⌋ = 1 on each side
    assert iqm_of(np.asarray([0.0, 0, 1, 2, 3, 4, 9, 9])).value == 2.5
    assert iqm_of(np.asarray([1.0, 2, 9])).value == 4.0  # ⌊3/4⌋ = 0: the plain mean


def test_of_three_seeds_the_interquartile_mean_has_students_interval():
    x = np.asarray([1.0, 2.0, 9.0])
    assert ends(iqm_of(x)) == pytest.approx(ends(mean_of(x)))


def test_the_trimmed_interval_is_yuens():
    """SciPy provides Yuen's test for two samples. Applied to a sample and its negative, the test has √2 times the
    standard error and twice the degrees of freedom of the sample alone."""
    x = np.random.default_rng(1).lognormal(size=12)
    test = stats.ttest_ind(x, -x, equal_var=False, trim=0.25)
    center = stats.trim_mean(x, 0.25)
    error = 2 * center / test.statistic / math.sqrt(2)
    assert test.df == pytest.approx(2 * 5)
    assert trimmed_half_width(x) == pytest.approx(stats.t.ppf(0.975, 5) * error)
    assert ends(iqm_of(x))[1] - center == pytest.approx(
        max(trimmed_half_width(x), calibrated("iqm", 12) * x.std(ddof=1))
    )
    # With two distant clusters, the middle half is more spread out than the calibration with normal seeds assumes.
    y = np.concatenate([np.zeros(6), np.ones(6)]) + 0.001 * np.arange(12)
    assert trimmed_half_width(y) > calibrated("iqm", 12) * y.std(ddof=1)
    assert ends(iqm_of(y))[1] - iqm_of(y).value == pytest.approx(trimmed_half_width(y))


def test_calibration_is_the_quantile_that_integration_gives():
    """For three normal seeds, the coverage of the median's interval is an integral over the direction of the residuals.

    The residuals lie on a circle of radius s√2: x_k = x̄ + s·√(4/3)·cos(φ + 2πk/3). The ratio x̄√3/s has Student's t
    distribution with 2 degrees of freedom and is independent of φ. So P(|x̄ + s·m(φ)| ≤ c·s) is the integral over φ of
    probabilities under this distribution.
    """
    angles = np.linspace(0, 2 * np.pi, 20_001)[:-1]
    middle = np.median(math.sqrt(4 / 3) * np.cos(angles[:, None] + 2 * np.pi * np.arange(3) / 3), axis=1)

    def inside(c):
        return np.mean(stats.t.cdf((c - middle) * math.sqrt(3), 2) - stats.t.cdf((-c - middle) * math.sqrt(3), 2))

    assert inside(calibrated("median", 3)) == pytest.approx(0.95, abs=5e-4)


def test_the_median_of_six_or_more_lies_between_order_statistics():
    x = np.asarray([9.0, 2, 7, 1, 4, 30])
    assert median_of(x).value == 5.5
    assert ends(median_of(x)) == (1.0, 30.0)  # covers 1 − 2·2⁻⁶ = 96.9 %; the next pair covers only 78 %
    ten = np.arange(10.0)
    assert ends(median_of(ten)) == (1.0, 8.0)  # 1 − 2·(1 + 10)/2¹⁰ = 97.9 %


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("name", ESTIMATES)
def test_intervals_cover_normal_seeds(name, n):
    """With 1,500 samples, this test rejects intervals that cover only 93.5 % or are clearly too wide."""
    samples = np.random.default_rng(n).normal(400.0, 50.0, (1500, n))
    covered = np.mean([low <= 400.0 <= high for low, high in (ends(ESTIMATES[name](x)) for x in samples)])
    # For n = 10, the order statistics cover 97.9 %, and the wider of the two intervals of the interquartile mean covers
    # about 97 %.
    assert 0.937 <= covered <= (0.99 if n == 10 else 0.965)


def test_a_percentile_bootstrap_would_not_pass_that():
    random = np.random.default_rng(0)
    samples = random.normal(size=(500, 5))
    means = [x[random.integers(0, 5, (300, 5))].mean(axis=1) for x in samples]
    covered = np.mean([np.quantile(m, 0.025) <= 0 <= np.quantile(m, 0.975) for m in means])
    assert covered < 0.9


def test_probability_of_improvement_counts_ties_half():
    x, y = np.asarray([1.0, 2, 3]), np.asarray([2.0, 2, 0, 5])
    # Five pairs are won: 1>0; 2>0; 3>2, 3>2, 3>0. Two pairs are tied: 2=2 twice. (5 + 2/2) / 12.
    assert probability_of_improvement(x, y).value == pytest.approx(0.5)
    assert probability_of_improvement(y, x).value == pytest.approx(0.5)
    assert probability_of_improvement(x, y - 10).value == 1.0


def test_its_interval_has_a_width_and_stays_a_probability():
    x = np.asarray([1.0, 2, 3])
    low, high = ends(probability_of_improvement(x + 10, x))
    assert 0.3 < low < 0.5 and high == 1.0
    assert ends(probability_of_improvement(x, x + 10)) == pytest.approx((0.0, 1 - low))
    assert probability_of_improvement(x[:1], x).interval is None


def test_its_ends_solve_the_score_equation():
    x, y = np.asarray([1.0, 4, 6, 9, 3]), np.asarray([2.0, 3.5, 0, 5])
    found = probability_of_improvement(x, y)
    for end in ends(found):  # t_{0.975, 7} = 2.364624
        assert abs(found.value - end) == pytest.approx(2.364624 * math.sqrt(variance(end, 5, 4)), rel=1e-4)
    # V at ½ with m = n = 2 by hand: ¼ · (1 + (½/1.5 + ½/1.5)) / 4 = 0.104167.
    assert variance(0.5, 2, 2) == pytest.approx(0.1041667)


@pytest.mark.parametrize(
    ("shift", "n"),
    [(0.0, 3), (1.0, 10), (2.0, 5), *(pytest.param(*case, marks=pytest.mark.weekly) for case in ((0.0, 10), (1.0, 3)))],
)
def test_it_covers(shift, n):
    random, truth = np.random.default_rng(n), stats.norm.cdf(shift / math.sqrt(2))
    pairs = [(random.normal(shift, 1, n), random.normal(0, 1, n)) for _ in range(800)]
    covered = np.mean(
        [low <= truth <= high for low, high in (ends(probability_of_improvement(x, y)) for x, y in pairs)]
    )
    assert covered >= 0.94


def test_one_stratum_is_one_sample():
    x = np.asarray([3.0, 1, 4, 1, 5])
    assert ends(stratified_mean([x])) == pytest.approx(ends(mean_of(x)))
    assert stratified_mean([x, x[:1]]).interval is None


def test_an_environment_whose_seeds_agree_is_not_known_for_certain():
    """By hand: if three seeds agree, up to 1 − 0.05^(1/3) = 0.6316 of all scores may still differ, so the variance is
    taken as s² = 0.6316 · 0.3684 = 0.23268. The other environment has s² = 0.01. The standard error is
    √(0.23268/3 + 0.01/3)/2 = 0.14222, and ν = 0.24268²/((0.23268² + 0.01²)/2)."""
    found = stratified_mean([np.ones(3), np.asarray([0.4, 0.5, 0.6])])
    freedom = 0.24268**2 / ((0.23268**2 + 0.01**2) / 2)
    assert ends(found)[1] - 0.75 == pytest.approx(stats.t.ppf(0.975, freedom) * 0.14222, rel=1e-3)
    assert stratified_mean([np.ones(3), np.zeros(3)]).interval is None


def test_two_strata_have_welchs_standard_error():
    """SciPy's Welch interval for x̄ − (−ȳ) is twice the interval for (x̄ + ȳ)/2."""
    x, y = np.asarray([3.0, 1, 4, 1, 5]), np.asarray([90.0, 40, 65])
    expected = stats.ttest_ind(x, -y, equal_var=False).confidence_interval(0.95)
    assert ends(stratified_mean([x, y])) == pytest.approx((expected.low / 2, expected.high / 2))


def test_the_interquartile_mean_of_strata_pools_them():
    strata = [np.asarray([0.0, 1.0]), np.asarray([2.0, 30.0])]
    assert stratified_iqm(strata).value == 1.5
    # The scores 1 and 2 are kept, each with half the weight: v = (1/2)² s²/2 = 0.0625 and 49, and
    # ν = 49.0625²/(0.0625² + 49²) = 1.00255. Winsorised at 1 and 2, neither stratum has any spread, so the winsorised
    # variance is the smaller one and is not used.
    half = ends(stratified_iqm(strata))[1] - 1.5
    assert half == pytest.approx(stats.t.ppf(0.975, 1.00255) * math.sqrt(49.0625), rel=1e-4)


def test_scores_on_a_quartile_count_in_part():
    # With six scores, the quartiles lie at 1.5 and 4.5, so the weights are (0, ½, 1, 1, ½, 0)/3.
    assert between_quartiles(np.full(6, 1 / 6)) == pytest.approx(np.asarray([0, 1, 2, 2, 1, 0]) / 6)
    assert between_quartiles(np.full(8, 1 / 8)) == pytest.approx(np.asarray([0, 0, 1, 1, 1, 1, 0, 0]) / 4)
    strata = [np.asarray([0.0, 6.0]), np.asarray([12.0, 18.0]), np.asarray([30.0, 99.0])]
    assert stratified_iqm(strata).value == pytest.approx((6 + 2 * 12 + 2 * 18 + 30) / 6)


def test_environments_weigh_the_same_whatever_their_seeds():
    """Scores are near 0 in one environment and near 1 in the other. Half of each environment's weight is in the middle
    half, however many seeds it has."""
    low, high = np.asarray([0.0, 0.01, -0.01]), 1 + 0.001 * np.arange(10)
    for strata in ([low, high], [high, low]):
        found = stratified_iqm(strata)
        # Each score of `low` has a share of 1/6. The middle half contains half of the second one, 0, all of the third,
        # 0.01, and the five lowest scores of `high`.
        assert found.value == pytest.approx((0.0 / 12 + 0.01 / 6 + np.sum(high[:5]) / 20) / 0.5)


def test_seeds_outside_the_quartiles_count_by_their_winsorised_spread():
    # The middle half has h = 3 scores: 1 and 8 with weight ½ each, and 3 and 4 with weight 1. The scores 0 and 9 have
    # weight 0. Winsorised at the ends (1, 8), their variance is s² = 24.5, so v = 24.5/2 · (2/3)². The other strata
    # have s² = 2 and 8, and a weight of (½ + 1)/3 each.
    strata = [np.asarray([1.0, 3.0]), np.asarray([4.0, 8.0]), np.asarray([0.0, 9.0])]
    parts = [max(1.0 * 0.25, 1.0 * 4 / 9), max(4.0 * 0.25, 4.0 * 4 / 9), 24.5 / 2 * 4 / 9]
    freedom = sum(parts) ** 2 / sum(v**2 for v in parts)
    found = stratified_iqm(strata)
    assert found.value == pytest.approx((1 + 2 * 3 + 2 * 4 + 8) / 6)
    assert ends(found)[1] - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts)))


@pytest.mark.parametrize("n", [3, 5, 10])
def test_strata_cover(n):
    random = np.random.default_rng(n)
    level, spread = np.asarray([0.2, 0.5, 0.9]), np.asarray([0.1, 0.3, 0.05])
    samples = [[random.normal(a, b, n) for a, b in zip(level, spread, strict=True)] for _ in range(800)]
    covered = np.mean([low <= level.mean() <= high for low, high in (ends(stratified_mean(x)) for x in samples)])
    assert 0.93 <= covered <= 0.985


@pytest.mark.parametrize("n", [3, 5, 10])
def test_the_interquartile_mean_over_two_environments_covers(n):
    """The test draws 40 pairs of widely different environments. With Tukey and McLaughlin's variance alone, intervals
    would cover only 90 %."""
    random, held = np.random.default_rng(n), []
    for _ in range(40):
        level, spread = random.uniform(0.2, 1.0, 2), random.uniform(0.02, 0.3, 2)
        truth = stats.trim_mean((level + spread * random.normal(size=(50_000, 2))).ravel(), 0.25)
        for _ in range(40):
            low, high = ends(stratified_iqm(list((level + spread * random.normal(size=(n, 2))).T)))
            held.append(low <= truth <= high)
    assert 0.93 <= np.mean(held) <= 0.985


def test_a_mean_of_estimates_adds_their_distances_by_squares():
    parts = [probability_of_improvement(np.asarray(x), np.asarray([1.0, 2, 3])) for x in ([2.0, 5, 6], [0.0, 1, 2])]
    found = mean_estimate(parts)
    below = math.hypot(*(p.value - p.interval.low for p in parts)) / 2
    above = math.hypot(*(p.interval.high - p.value for p in parts)) / 2
    assert found.value == np.mean([p.value for p in parts])
    assert ends(found) == (found.value - below, found.value + above) and above != pytest.approx(below)


def test_a_profile_is_the_share_above_with_its_interval():
    x = np.asarray([0.1, 0.5, 0.9, 0.9])
    band = profile([x], np.asarray([0.0, 0.5, 0.9]))
    assert band.mean.tolist() == [1.0, 0.5, 0.0]
    # Clopper–Pearson: observing 0 of 4 excludes every share p for which this outcome has probability (1 − p)⁴ < 0.025.
    assert (band.low[2], band.high[2]) == pytest.approx((0.0, 1 - 0.025**0.25))
    wilson = stats.binomtest(2, 4).proportion_ci(method="wilson")
    two = profile([x, x], np.asarray([0.5]))
    assert two.low[0] == pytest.approx(0.5 - (0.5 - wilson.low) / math.sqrt(2))
    assert np.isnan(profile([np.asarray([0.5])], np.asarray([0.0])).low).all()


def test_a_learning_curve_is_what_was_known_at_each_step(run_of):
    """The return at a step is the mean of the last 100 episodes that had ended by then."""
    path = run_of(episodes={0: [(10, 1.0), (20, 3.0), (90, 8.0)], 1: [(60, 5.0)]}, steps=100)
    record = read_record(path)
    steps, returns = curve(record, points=4)
    assert steps.tolist() == [25.0, 50.0, 75.0, 100.0]
    np.testing.assert_array_equal(returns, [[2, 2, 2, 4], [np.nan, np.nan, 5, 5]])
    np.testing.assert_array_equal(returns_at(record, np.asarray([9, 10, 59, 60]))[1], [np.nan, np.nan, np.nan, 5])


def test_a_learning_curve_forgets_episodes_older_than_a_hundred(run_of):
    path = run_of(episodes={0: [(i, 0.0 if i < 50 else 1.0) for i in range(1, 201)]}, steps=200)
    returns = returns_at(read_record(path), np.asarray([100.0, 149.0, 150.0]))
    assert returns[0].tolist() == [0.51, 1.0, 1.0]


def test_the_difference_of_means_has_welchs_interval():
    x, y = np.array([3.0, 5.0, 4.0, 8.0]), np.array([1.0, 2.0, 2.0, 3.0, 7.0])
    a, b = x.var(ddof=1) / 4, y.var(ddof=1) / 5
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 4)  # Welch–Satterthwaite
    found, half = difference_of_means(x, y), stats.t.ppf(0.975, freedom) * math.sqrt(a + b)
    assert found.value == 2.0
    assert (found.interval.low, found.interval.high) == pytest.approx((2 - half, 2 + half))
    for lone, other in ((x[:1], y), (np.ones(3), np.zeros(3)), (np.array([1.0, math.nan]), y)):
        assert difference_of_means(lone, other).interval is None
