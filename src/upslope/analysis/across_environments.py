"""Statistics of normalised scores over several environments: each environment is a stratum with its own seeds.

Seeds in one environment differ by chance, whereas environments differ systematically, so only the spread within an
environment counts as uncertainty. The intervals hold for these environments and say nothing about others.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from scipy import stats

from upslope.analysis.statistics import Band, Estimate, Interval, around, largest_deviating_share
from upslope.core.numbers import LEVEL, t_quantile


def stratified_mean(strata: Sequence[np.ndarray]) -> Estimate:
    """The mean of the M environments' means: Σ x̄_m / M ± t_ν √(Σ s_m²/S_m) / M, with ν after Welch and Satterthwaite.

    For one environment this is Student's interval. With several, an environment whose seeds all agree still contributes
    uncertainty: see `mean_variance`.
    """
    value = float(np.mean([np.mean(x) for x in strata]))
    return Estimate(value, welch(value, [mean_variance(x) / len(strata) ** 2 for x in strata], strata))


def stratified_iqm(strata: Sequence[np.ndarray]) -> Estimate:
    """The interquartile mean over the pooled seeds of all environments, after Agarwal et al. 2021.

    Every environment has the same weight, regardless of how many seeds it has; in the paper, all environments have
    equally many. A score on a quartile is counted in part: including or excluding it entirely would give its
    environment too much or too little weight.

    The variance is Σ v_m, where v_m is the larger of two estimates, because with few seeds either one is often too
    small. The first, W_m² s_m²/S_m, treats the weight W_m of the environment's scores as fixed (the delta method). The
    second, (2/M)² s²_{w,m}/S_m after Tukey and McLaughlin, uses scores winsorised at the ends of the middle half, and
    lets that weight vary. The degrees of freedom follow Welch and Satterthwaite.
    """
    scores = np.concatenate(strata)
    if not np.isfinite(scores).all():
        return Estimate(math.nan, None)
    weights, order = np.empty(len(scores)), np.argsort(scores)
    shares = np.concatenate([np.full(len(x), 1 / len(x) / len(strata)) for x in strata])
    weights[order] = between_quartiles(shares[order])
    kept = scores[weights > 0]
    ends = kept.min(), kept.max()
    each = np.split(weights, np.cumsum([len(x) for x in strata])[:-1])
    variances = [
        max(mean_variance(x) * w.sum() ** 2, mean_variance(x, *ends) * (2 / len(strata)) ** 2)
        for x, w in zip(strata, each, strict=True)
    ]
    value = float(scores @ weights)
    return Estimate(value, welch(value, variances, strata))


def between_quartiles(shares: np.ndarray) -> np.ndarray:
    """The weight of each ordered score in the mean of the middle half: the part of its cumulative share that lies
    between a quarter and three quarters. Parts no larger than rounding errors count as zero."""
    cumulative = np.cumsum(shares)
    inside = np.minimum(cumulative, 0.75) - np.maximum(cumulative - shares, 0.25)
    return np.where(inside > 1e-9, inside, 0.0) / 0.5


def mean_variance(x: np.ndarray, low: float = -math.inf, high: float = math.inf) -> float:
    """s²/S of the scores winsorised at `low` and `high`; nan for one seed.

    If all seeds agree, s² is set to q(1 − q), where q is the largest plausible share of seeds that score one
    unit differently (`largest_deviating_share`). One unit is the range of normalised scores.
    """
    if len(x) < 2:
        return math.nan
    if np.ptp(x) > 0:
        return float(np.var(np.clip(x, low, high), ddof=1)) / len(x)
    share = largest_deviating_share(len(x))
    return share * (1 - share) / len(x)


def welch(value: float, variances: Sequence[float], strata: Sequence[np.ndarray]) -> Interval | None:
    """value ± t_ν √Σv_m, ν = (Σv_m)² / Σ v_m²/(S_m − 1). None if an environment has one seed, or if no
    environment has a spread."""
    if min(map(len, strata)) < 2 or not any(np.ptp(x) > 0 for x in strata):
        return None
    total = math.fsum(variances)
    freedom = total**2 / math.fsum(v**2 / (len(x) - 1) for v, x in zip(variances, strata, strict=True))
    return around(value, float(t_quantile(freedom)) * math.sqrt(total))


def mean_estimate(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, with its interval.

    The interval combines the intervals of the M estimates: it extends √Σ(θ_m − low_m)² / M below the mean, and likewise
    above it (Zou & Donner 2008). There is no interval if one of the estimates has none.
    """
    value = float(np.mean([part.value for part in parts]))
    intervals = [part.interval for part in parts if part.interval is not None]
    if len(intervals) < len(parts):
        return Estimate(value, None)
    below = math.hypot(*(part.value - i.low for part, i in zip(parts, intervals, strict=True))) / len(parts)
    above = math.hypot(*(i.high - part.value for part, i in zip(parts, intervals, strict=True))) / len(parts)
    return Estimate(value, Interval(value - below, value + above))


def profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> Band:
    """The share of seeds above each threshold [K], averaged over environments, with its pointwise interval;
    nan if a seed has no score, as for the mean.

    For one environment the interval is Clopper and Pearson's (1934), whose coverage is at least 95 %; for several,
    `mean_estimate` combines Wilson's (1927) intervals.
    """
    if not all(np.isfinite(x).all() for x in strata):  # a seed without a score is neither above nor below
        unknown = np.full(len(thresholds), math.nan)
        return Band(unknown, unknown, unknown)
    method = "exact" if len(strata) == 1 else "wilson"
    at = [mean_estimate([share_of(int((x > tau).sum()), len(x), method) for x in strata]) for tau in thresholds]
    low = [math.nan if e.interval is None else e.interval.low for e in at]
    high = [math.nan if e.interval is None else e.interval.high for e in at]
    return Band(np.asarray([e.value for e in at]), np.asarray(low), np.asarray(high))


@cache
def share_of(count: int, n: int, method: Literal["exact", "wilson"]) -> Estimate:
    """The share count/n of seeds with its interval; with a single seed, there is no interval."""
    if n < 2:
        return Estimate(count / n, None)
    found = stats.binomtest(count, n).proportion_ci(LEVEL, method=method)
    return Estimate(count / n, Interval(float(found.low), float(found.high)))
