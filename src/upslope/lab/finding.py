"""The result of an experiment: curves, and claims, each compared with a measurement by the same rule."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest

from upslope.core.numbers import half_width, t_quantile

Verdict = Literal["supported", "refuted", "undecided"]
Interval = tuple[float, float]
ABOVE_ZERO: Interval = (0.0, math.inf)
BELOW_ZERO: Interval = (-math.inf, 0.0)


class Estimate(NamedTuple):
    """A measured number and its 95 % interval; exact numbers have an interval of zero width."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Finding:
    """One claim: the number that it predicts, and the measurement."""

    name: str
    """The key of the claim's texts in each language."""
    estimate: Estimate
    predicted: Interval
    """The range in which the number lies if the claim holds."""

    @property
    def verdict(self) -> Verdict:
        """The verdict of `judge`."""
        return judge(self.estimate.interval, self.predicted)


class Line(NamedTuple):
    """A curve y(x) with an optional band; a reference shows theory, not a measurement."""

    name: str
    x: Sequence[Any]
    y: Sequence[float] | Float[np.ndarray, "K"]
    low: Sequence[float] | Float[np.ndarray, "K"] | None = None
    high: Sequence[float] | Float[np.ndarray, "K"] | None = None
    is_reference: bool = False


@dataclass(frozen=True)
class Panel:
    """One small figure, whose titles are stored in the texts under its name."""

    name: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    is_bars: bool = False
    is_points: bool = False


def with_intervals(name: str, x: Sequence[Any], estimates: Sequence[Estimate]) -> Line:
    """A line through estimates, with their intervals as its band."""
    low, high = zip(*(e.interval for e in estimates), strict=True)
    return Line(name, x, [e.value for e in estimates], low, high)


def against_theory(name: str, measured: Line, theory: Sequence[float] | np.ndarray, **axes: bool) -> Panel:
    """A panel with a measured line and the theoretical line at the same x."""
    return Panel(name, (measured, Line("theory", measured.x, theory, is_reference=True)), **axes)


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment."""

    findings: tuple[Finding, ...]
    panels: tuple[Panel, ...]
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    """Numbers that the texts mention: sample sizes, exact values."""


@dataclass(frozen=True)
class Experiment:
    """An experiment's name and function; `quick` holds the arguments for its small version."""

    name: str
    measure: Callable[..., Outcome]
    quick: Mapping[str, Any]


def judge(interval: Interval, predicted: Interval) -> Verdict:
    """Supported if the interval lies inside the predicted range, refuted if it lies outside, and undecided if it
    overlaps the boundary."""
    (low, high), (lower, upper) = interval, predicted
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if lower < low and high < upper:
        return "supported"
    return "refuted" if high < lower or low > upper else "undecided"


def exactly(value: float) -> Estimate:
    """A number without sampling error."""
    return Estimate(float(value), (float(value), float(value)))


def around(value: float, margin: float) -> Interval:
    """The range value ± margin, in which a measured number counts as equal to `value`."""
    return (value - margin, value + margin)


def mean_of(samples: Float[np.ndarray, "R"]) -> Estimate:
    """The mean of R independent samples with Student's interval."""
    mean, half = float(np.mean(samples, dtype=np.float64)), half_width(samples)
    return Estimate(mean, (mean - half, mean + half))


def mean_share_of(shares: Float[np.ndarray, "R"]) -> Estimate:
    """The mean of R independent shares. Student's interval is cut to the possible values, 0 to 1."""
    mean, (low, high) = mean_of(shares)
    return Estimate(mean, (max(low, 0.0), min(high, 1.0)))


def difference_of(left: Float[np.ndarray, "R"], right: Float[np.ndarray, "Q"]) -> Estimate:
    """mean(left) − mean(right) of independent samples with Welch's 95 % interval."""
    parts = [np.var(x, ddof=1) / len(x) for x in (left, right)]
    degrees = sum(parts) ** 2 / max(sum(p**2 / (len(x) - 1) for p, x in zip(parts, (left, right), strict=True)), 1e-300)
    difference = float(np.mean(left) - np.mean(right))
    half = float(t_quantile(max(degrees, 1.0)) * math.sqrt(sum(parts)))
    return Estimate(difference, (difference - half, difference + half))


def ratio_of(log_ratio: Estimate) -> Estimate:
    """Convert the estimate of a log ratio, whose interval is symmetric, to one of the ratio."""
    low, high = log_ratio.interval
    return Estimate(float(np.exp(log_ratio.value)), (float(np.exp(low)), float(np.exp(high))))


def share_of(happened: Bool[np.ndarray, "R"]) -> Estimate:
    """The share of R independent repetitions in which something happened, with Clopper and Pearson's interval."""
    found = binomtest(int(happened.sum()), len(happened)).proportion_ci(0.95)
    return Estimate(float(happened.mean()), (float(found.low), float(found.high)))


def root_mean_square(errors: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "K"]:
    """√mean(error²) over the repetitions."""
    return np.sqrt((errors**2).mean(axis=0))


def median(errors: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "K"]:
    """The median over the repetitions, which is meaningful even if the variance is infinite."""
    return np.median(errors, axis=0)


def power_law(
    sizes: list[int],
    errors: Float[np.ndarray, "R K"],
    typical: Callable[[np.ndarray], np.ndarray] = root_mean_square,
    groups: int = 16,
) -> Estimate:
    """k in error ~ n^k: the slope of log error over log n, with an interval from groups of independent repetitions.

    `errors` are the absolute errors of R repetitions at K sample sizes; `typical` reduces the errors of a group to [K].
    """
    curves = [typical(group) for group in np.array_split(errors, groups)]
    return mean_of(np.array([np.polyfit(np.log(sizes), np.log(curve), 1)[0] for curve in curves]))
