"""Statistics over several environments, in normalised scores: every environment is a stratum, with seeds of its own.

Seeds differ within an environment by chance, environments differ for good; so only the spread within each counts as
uncertainty. The intervals are about these environments, and say nothing of others.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from scipy import stats

from upslope.analysis.statistics import Band, Estimate, Interval, around, share_otherwise
from upslope.core.numbers import LEVEL, t_quantile


def stratified_mean(strata: Sequence[np.ndarray]) -> Estimate:
    """The mean of the M environments' means: Σ x̄_m / M ± t_ν √(Σ s_m²/S_m) / M, ν by Welch and Satterthwaite.

    For one environment this is Student's interval. Of several, one whose seeds all agree is not known for certain:
    see `mean_variance`.
    """
    value = float(np.mean([np.mean(x) for x in strata]))
    return Estimate(value, welch(value, [mean_variance(x) / len(strata) ** 2 for x in strata], strata))


def stratified_iqm(strata: Sequence[np.ndarray]) -> Estimate:
    """The interquartile mean of all seeds of all environments together, after Agarwal et al. 2021.

    Every environment has the same weight, so that of several with unequal numbers of seeds none leads; theirs have
    equal numbers. A score on a quartile counts in part: left out whole or not at all, it would give the environment
    that it is from too much or too little weight.

    The variance is Σ v_m, v_m the larger of two, for of few seeds either is often too small: W_m² s_m²/S_m, as if the
    weight W_m of the environment's scores were always that of the same places (the delta method); and Tukey and
    McLaughlin's (2/M)² s²_{w,m}/S_m, of the scores winsorised at the ends of the half that is kept, which knows that
    others might have been. Degrees of freedom by Welch and Satterthwaite.
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
    """The weight of each ordered score in the mean of the middle half: of its share of the whole, as much as lies
    between a quarter and three quarters. What only rounding leaves there is none."""
    until = np.cumsum(shares)
    inside = np.minimum(until, 0.75) - np.maximum(until - shares, 0.25)
    return np.where(inside > 1e-9, inside, 0.0) / 0.5


def mean_variance(x: np.ndarray, low: float = -math.inf, high: float = math.inf) -> float:
    """s²/S of the scores winsorised at two ends; nan for one seed.

    Where all seeds agree, s² is q(1 − q), of the share q that could be one unit elsewhere (`share_otherwise`), for
    normalised scores have 0 where nothing is achieved and 1 where all is.
    """
    if len(x) < 2:
        return math.nan
    if np.ptp(x) > 0:
        return float(np.var(np.clip(x, low, high), ddof=1)) / len(x)
    others = share_otherwise(len(x))
    return others * (1 - others) / len(x)


def welch(value: float, variances: Sequence[float], strata: Sequence[np.ndarray]) -> Interval | None:
    """value ± t_ν √Σv_m, ν = (Σv_m)² / Σ v_m²/(S_m − 1). None where an environment has one seed, or none a spread."""
    if min(map(len, strata)) < 2 or not any(np.ptp(x) > 0 for x in strata):
        return None
    total = math.fsum(variances)
    freedom = total**2 / math.fsum(v**2 / (len(x) - 1) for v, x in zip(variances, strata, strict=True))
    return around(value, float(t_quantile(freedom)) * math.sqrt(total))


def mean_estimate(parts: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates.

    Each end is that far from the mean which the ends of the parts give together: √Σ(θ_m − low_m)² / M below, and
    likewise above (Zou & Donner 2008). None where a part has no interval.
    """
    value = float(np.mean([part.value for part in parts]))
    intervals = [part.interval for part in parts if part.interval is not None]
    if len(intervals) < len(parts):
        return Estimate(value, None)
    below = math.hypot(*(part.value - i.low for part, i in zip(parts, intervals, strict=True))) / len(parts)
    above = math.hypot(*(i.high - part.value for part, i in zip(parts, intervals, strict=True))) / len(parts)
    return Estimate(value, Interval(value - below, value + above))


def profile(strata: Sequence[np.ndarray], thresholds: np.ndarray) -> Band:
    """The share of seeds above each threshold [K], averaged over environments, with its pointwise interval.

    In one environment the interval is Clopper and Pearson's (1934), which holds the truth at least as often as it
    says; over several, Wilson's (1927) of each, put together by `mean_estimate`.
    """
    method = "exact" if len(strata) == 1 else "wilson"
    at = [mean_estimate([share_of(int((x > tau).sum()), len(x), method) for x in strata]) for tau in thresholds]
    low = [math.nan if e.interval is None else e.interval.low for e in at]
    high = [math.nan if e.interval is None else e.interval.high for e in at]
    return Band(np.asarray([e.value for e in at]), np.asarray(low), np.asarray(high))


@cache
def share_of(count: int, n: int, method: Literal["exact", "wilson"]) -> Estimate:
    """count of n seeds, and its interval; none for one seed."""
    if n < 2:
        return Estimate(count / n, None)
    found = stats.binomtest(count, n).proportion_ci(LEVEL, method=method)
    return Estimate(count / n, Interval(float(found.low), float(found.high)))
