"""Statistics over a few seeds: estimates with intervals. The seed is the unit of replication.

Every interval is computed by a formula, without resampling, so the results are deterministic. `benchmarks/coverage.py`
measures how often the intervals cover the true value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from upslope.analysis.records import Record
from upslope.core.numbers import FEW_SEEDS, LEVEL, half_width, number, plus_minus, t_quantile, with_interval

CALIBRATION = 100_000
"""Number of simulated samples for a calibrated interval; its width is accurate to about half a percent."""
BLOCK = 1000
"""Number of simulated samples held in memory at a time."""
LARGE = 100
"""From this number of seeds on, the ratio of the quantiles is treated as constant: for the interquartile mean it is
1.090 here, and its limit is √1.195 = 1.093 (the asymptotic variance of the mean trimmed by a quarter on each side)."""
TAIL = 0.25
"""Fraction of the seeds that the interquartile mean leaves out on each side."""
WINSORISED_FROM = 10
"""Minimum number of seeds for a winsorised variance: with fewer, it has under five degrees of freedom."""
SEARCH_OFFSET = 1e-9
"""Distance from the estimate at which the search for an endpoint of its interval starts."""
WINDOW = 100
"""Number of episodes averaged at each point of a learning curve: the most recent ones."""
HUNDREDTHS = 0.5
"""The `spread` that gives probabilities and normalised scores two decimals; a few seeds support no more."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """A number and its interval."""

    value: float
    interval: Interval | None
    """None if the spread is unknown: one seed, seeds that all agree, or a seed without a score."""

    def words(self, spread: float = math.nan) -> str:
        """Format as `14.0 ± 3.9`, or as `14.0 [9.8, 20.1]` if asymmetric. Without an interval, `spread` sets the number
        of digits."""
        if self.interval is None:
            return number(self.value, spread)
        below, above = self.value - self.interval.low, self.interval.high - self.value
        if math.isclose(below, above, rel_tol=1e-6):
            return plus_minus(self.value, above)
        return " ".join(with_interval(self.value, self.interval.low, self.interval.high))


class Band(NamedTuple):
    """A mean over seeds along a time axis [I], and its interval; nan where there is no interval."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def interval_of_mean(x: np.ndarray) -> Interval | None:
    """Student's interval of the mean of x [S]: see `half_width`.

    None for a single seed and for seeds that all agree, since neither has a measurable spread.
    """
    return around(float(np.mean(x)), half_width(x)) if has_spread(x) else None


def mean_band(x: np.ndarray) -> Band:
    """The mean over seeds and its Student interval at each point of x [S, I], ignoring nan."""
    known = np.isfinite(x)
    n = known.sum(axis=0)
    mean = np.divide(np.where(known, x, 0.0).sum(axis=0), n, out=np.full(n.shape, np.nan), where=n > 0)
    squares = np.where(known, (x - mean) ** 2, 0.0).sum(axis=0)
    half = np.full(n.shape, np.nan)
    varies = (n > 1) & (squares > 0)
    half[varies] = t_quantile(n[varies] - 1) * np.sqrt(squares[varies] / (n[varies] - 1) / n[varies])
    return Band(mean, mean - half, mean + half)


def mean_of(x: np.ndarray) -> Estimate:
    """The mean over seeds x [S], with Student's interval."""
    return Estimate(float(np.mean(x)), interval_of_mean(x))


def mean_known(x: np.ndarray) -> np.ndarray:
    """The mean of the known values over the last axis; nan where there are none."""
    known = np.isfinite(x)
    count = known.sum(axis=-1)
    return np.where(known, x, 0.0).sum(axis=-1) / np.where(count > 0, count, np.nan)


def median_of(x: np.ndarray) -> Estimate:
    """The median over seeds x [S].

    With six or more seeds, the interval lies between two order statistics and assumes nothing about the distribution.
    With five or fewer, even the whole range covers the median with a probability of only 1 − 2^(1−S) (94 % for five
    seeds, 75 % for three), so the interval is calibrated for normal scores instead: median ± c_S · s.
    """
    value = float(np.median(x))
    if not has_spread(x):
        return Estimate(value, None)
    if len(x) < 6:
        return Estimate(value, around(value, calibrated("median", len(x)) * spread(x)))
    low, high = stats.quantile_test(x, p=0.5).confidence_interval(LEVEL)
    return Estimate(value, Interval(float(low), float(high)))


def iqm_of(x: np.ndarray) -> Estimate:
    """The interquartile mean over seeds x [S]: the mean without the lowest and the highest ⌊S/4⌋ (Agarwal et al. 2021).

    The interval is iqm ± c_S · s, with c_S chosen so that it is exact for normal scores. With ten or more seeds, it is
    never narrower than Tukey and McLaughlin's (1963), which adapts to the tails of the data.
    """
    value = float(stats.trim_mean(x, TAIL)) if np.isfinite(x).all() else math.nan
    if not has_spread(x):
        return Estimate(value, None)
    half = calibrated("iqm", len(x)) * spread(x)
    if len(x) >= WINSORISED_FROM:
        half = max(half, trimmed_half_width(x))
    return Estimate(value, around(value, half))


def thinness(num_seeds: int) -> str:
    """A warning if there are few seeds; empty if there are enough."""
    if num_seeds >= FEW_SEEDS:
        return ""
    return f"{num_seeds} seeds are thin evidence" if num_seeds > 1 else "one seed gives no interval"


def agreement(x: np.ndarray) -> str:
    """A warning if all seeds x [S] have the same score; empty if they differ."""
    n = len(x)
    if n < 2 or not np.isfinite(x).all() or np.ptp(x) > 0:
        return ""
    return (
        f"all {n} seeds have the same score, so there is no spread to base an interval on. Up to "
        f"{largest_deviating_share(n):.0%} of seeds could have another score (95 %)"
    )


def largest_deviating_share(n: int) -> float:
    """1 − 0.05^(1/n): the largest share of deviating seeds in the population that is consistent with n seeds agreeing.

    With a larger share, n seeds would all agree in less than one case in twenty.
    """
    return 1 - (1 - LEVEL) ** (1 / n)


def trimmed_half_width(x: np.ndarray) -> float:
    """t_{0.975, h−1} · √((S−1) s_w² / (h(h−1))), with g = ⌊S/4⌋ seeds trimmed on each side, h = S − 2g left, and the
    winsorised variance s_w² (Tukey & McLaughlin 1963)."""
    n = len(x)
    cut = int(TAIL * n)
    left = n - 2 * cut
    ordered = np.sort(x)
    winsorised = np.clip(ordered, ordered[cut], ordered[n - cut - 1])
    return float(t_quantile(left - 1)) * math.sqrt((n - 1) * float(np.var(winsorised, ddof=1)) / (left * (left - 1)))


def has_spread(x: np.ndarray) -> bool:
    """Whether the spread of seeds x [S] is known, so that an interval can be computed."""
    return len(x) > 1 and bool(np.isfinite(x).all()) and float(np.ptp(x)) > 0


def spread(x: np.ndarray) -> float:
    """The standard deviation of seeds x [S]."""
    return float(np.std(x, ddof=1))


def around(value: float, half: float) -> Interval:
    """The interval value ± half."""
    return Interval(value - half, value + half)


STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": lambda x: np.mean(x, axis=-1),
    "median": lambda x: np.median(x, axis=-1),
    "iqm": lambda x: stats.trim_mean(x, TAIL, axis=-1),
}


@cache
def calibrated(statistic: str, n: int) -> float:
    """c_n, the 95 % quantile of |T|/s over samples of n standard normal scores, where T is the statistic and s the
    sample's standard deviation.

    The distribution of (T − μ)/s does not depend on μ and σ, so T ± c_n·s covers μ in exactly 95 % of normal samples.
    Student's interval is the case T = mean, c_n = t/√n. The simulation, which has a fixed seed, measures both quantiles
    on the same samples and takes their ratio, so that most of the sampling error cancels.
    """
    return quantile_ratio(statistic, min(n, LARGE)) * float(t_quantile(n - 1)) / math.sqrt(n)


@cache
def quantile_ratio(statistic: str, n: int) -> float:
    """The 95 % quantile of |T|/s over that of |mean|/s, on the same simulated samples."""
    random = np.random.default_rng(n)
    found: list[np.ndarray] = []
    for _ in range(CALIBRATION // BLOCK):
        x = random.standard_normal((BLOCK, n))
        sizes = np.abs([STATISTICS[statistic](x), STATISTICS["mean"](x)])
        found.append(sizes / x.std(axis=-1, ddof=1))
    of_statistic, of_mean = np.quantile(np.concatenate(found, axis=1), LEVEL, axis=1)
    return float(of_statistic / of_mean)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> Estimate:
    """θ = P(X > Y) + ½ P(X = Y): how often a seed of x [S] beats a seed of y [R] (Agarwal et al. 2021).

    The estimate is the Mann–Whitney statistic U/(S·R). The interval inverts the score test |θ̂ − θ| ≤ t √V(θ) with the
    variance V of Hanley and McNeil (Newcombe 2006, method 5). It therefore has a nonzero width even if one side always
    wins, and stays within [0, 1]. t has S + R − 2 degrees of freedom: with Newcombe's normal quantile, a result in
    which three seeds all beat three others would count as a difference, although chance alone produces it one time in
    ten. There is no interval if either side has only one seed.
    """
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return Estimate(math.nan, None)
    theta = float(stats.mannwhitneyu(x, y, method="asymptotic").statistic) / (len(x) * len(y))
    if min(len(x), len(y)) < 2:
        return Estimate(theta, None)

    t = float(t_quantile(len(x) + len(y) - 2))

    def excess(candidate: float) -> float:
        return (theta - candidate) ** 2 - t**2 * variance(candidate, len(x), len(y))

    # If one side always wins, θ̂ itself also solves the equation, but it is not an endpoint of the interval.
    low = root(excess, 0.0, theta - SEARCH_OFFSET) if theta > 0 else 0.0
    high = root(excess, theta + SEARCH_OFFSET, 1.0) if theta < 1 else 1.0
    return Estimate(theta, Interval(low, high))


def difference_of_means(x: np.ndarray, y: np.ndarray) -> Estimate:
    """mean(x) − mean(y) over seeds x [S] and y [R], with Welch's interval, which does not assume equal variances.

    The interval is None if either side has only one seed, or if all seeds agree on both sides.
    """
    value = float(np.mean(x) - np.mean(y))
    is_known = min(len(x), len(y)) > 1 and bool(np.isfinite(x).all() and np.isfinite(y).all())
    if not is_known or not (np.ptp(x) > 0 or np.ptp(y) > 0):
        return Estimate(value, None)
    found: Any = stats.ttest_ind(x, y, equal_var=False).confidence_interval(LEVEL)
    return Estimate(value, Interval(float(found.low), float(found.high)))


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a function between two points where it has opposite signs."""
    found: Any = optimize.brentq(function, low, high)
    return float(found)


def variance(theta: float, m: int, n: int) -> float:
    """V(θ) = θ(1−θ) [1 + (N−1) ((1−θ)/(2−θ) + θ/(1+θ))] / (m n), with N = (m+n)/2 (Newcombe 2006, method 5)."""
    more = (m + n) / 2 - 1
    return theta * (1 - theta) * (1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / (m * n)


def curve(record: Record, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Each seed's learning curve on a common grid: (steps [P], returns [S, P]).

    The return at a step is the mean over the last 100 (or fewer) training episodes that had ended by then; it is nan
    before the first one ended. The grid ends at the budget, or at the last step of an unfinished run.
    """
    reached = np.nanmax(record.steps)
    steps = np.linspace(0.0, min(float(record.config.steps), reached), points + 1)[1:]
    return steps, returns_at(record, steps)


def returns_at(record: Record, steps: np.ndarray) -> np.ndarray:
    """Each seed's mean return over the last 100 training episodes that had ended by each of these steps [S, P]."""
    found = np.full((len(record.seeds), len(steps)), np.nan)
    for s, seed in enumerate(record.seeds):
        episodes = record.episodes_of(seed)
        sums = np.concatenate([[0.0], np.cumsum(episodes["return"])])
        last = np.searchsorted(episodes["step"], steps, side="right")
        first = np.maximum(last - WINDOW, 0)
        np.divide(sums[last] - sums[first], last - first, out=found[s], where=last > 0)
    return found
