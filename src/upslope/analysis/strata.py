"""Statistics over several environments, in normalised scores: every environment is a stratum, with seeds of its own.

Seeds differ within an environment by chance, environments differ for good; so only the spread within each counts as
uncertainty. The intervals are about these environments, and say nothing of others.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import stats

from upslope.analysis.statistics import LEVEL, TAIL, Band, Estimate, Interval, around


def stratified_mean(strata: Sequence[np.ndarray]) -> Estimate:
    """The mean of the M environments' means: Σ x̄_m / M ± t_ν √(Σ s_m²/S_m) / M, ν by Welch and Satterthwaite.

    For one environment this is Student's interval.
    """
    value = float(np.mean([np.mean(x) for x in strata]))
    return Estimate(value, welch(value, [mean_variance(x) / len(strata) ** 2 for x in strata], strata))


def stratified_iqm(strata: Sequence[np.ndarray]) -> Estimate:
    """The interquartile mean of all seeds of all environments together (Agarwal et al. 2021).

    Its variance is Tukey and McLaughlin's, taken within environments: with all scores winsorised at the ends of what is
    kept, Σ S_m s_{w,m}² / h², h the number of scores kept. Degrees of freedom by Welch and Satterthwaite.
    """
    every = np.sort(np.concatenate(strata))
    if not np.isfinite(every).all():
        return Estimate(math.nan, None)
    value = float(stats.trim_mean(every, TAIL))
    cut = int(TAIL * len(every))
    kept = len(every) - 2 * cut
    clipped = [np.clip(x, every[cut], every[-1 - cut]) for x in strata]
    return Estimate(value, welch(value, [mean_variance(x) * (len(x) / kept) ** 2 for x in clipped], strata))


def mean_variance(x: np.ndarray) -> float:
    """s²/S; nan for one seed."""
    return float(np.var(x, ddof=1)) / len(x) if len(x) > 1 else math.nan


def welch(value: float, variances: Sequence[float], strata: Sequence[np.ndarray]) -> Interval | None:
    """value ± t_ν √Σv_m, ν = (Σv_m)² / Σ v_m²/(S_m − 1). None where an environment has one seed, or none a spread."""
    total = math.fsum(variances)
    if not total > 0 or min(map(len, strata)) < 2:
        return None
    freedom = total**2 / math.fsum(v**2 / (len(x) - 1) for v, x in zip(variances, strata, strict=True))
    return around(value, float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(total))


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

    In one environment the interval is Wilson's (1927); over several, `mean_estimate`.
    """
    at = [mean_estimate([share_of(int((x > tau).sum()), len(x)) for x in strata]) for tau in thresholds]
    low = [math.nan if e.interval is None else e.interval.low for e in at]
    high = [math.nan if e.interval is None else e.interval.high for e in at]
    return Band(np.asarray([e.value for e in at]), np.asarray(low), np.asarray(high))


@cache
def share_of(count: int, n: int) -> Estimate:
    """count of n seeds, with Wilson's interval; none for one seed."""
    if n < 2:
        return Estimate(count / n, None)
    found = stats.binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return Estimate(count / n, Interval(float(found.low), float(found.high)))
