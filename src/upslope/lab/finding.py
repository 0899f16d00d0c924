"""What an experiment hands back: claims, each held against a measurement by one rule, and curves to look at."""

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
    """A measured number and its 95 % interval; exact numbers have an interval without width."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Finding:
    """One claim, what it predicts of one number, and the number as measured."""

    name: str
    """Under which the texts of every language speak of it."""
    estimate: Estimate
    predicted: Interval
    """Where the number must lie if the claim holds."""

    @property
    def verdict(self) -> Verdict:
        """The rule, the same for every claim: see `judge`."""
        return judge(self.estimate.interval, self.predicted)


class Line(NamedTuple):
    """A curve y(x), maybe with a band; a `reference` is what theory says, not a measurement."""

    name: str
    x: Sequence[Any]
    y: Sequence[float] | Float[np.ndarray, "K"]
    low: Sequence[float] | Float[np.ndarray, "K"] | None = None
    high: Sequence[float] | Float[np.ndarray, "K"] | None = None
    is_reference: bool = False


@dataclass(frozen=True)
class Panel:
    """One small figure; titles are in the texts, under its name."""

    name: str
    lines: tuple[Line, ...]
    log_x: bool = False
    log_y: bool = False
    is_bars: bool = False
    is_points: bool = False


@dataclass(frozen=True)
class Outcome:
    """All that an experiment found."""

    findings: tuple[Finding, ...]
    panels: tuple[Panel, ...]
    numbers: Mapping[str, float | int] = field(default_factory=dict)
    """What the texts mention: sample sizes, exact values."""


@dataclass(frozen=True)
class Experiment:
    """A name and a function; `quick` are the arguments that make it small."""

    name: str
    measure: Callable[..., Outcome]
    quick: Mapping[str, Any]


def judge(interval: Interval, predicted: Interval) -> Verdict:
    """Supported if the interval lies inside the predicted region, refuted if outside, undecided across the border."""
    (low, high), (least, most) = interval, predicted
    if math.isnan(low) or math.isnan(high):
        return "undecided"
    if least < low and high < most:
        return "supported"
    return "refuted" if high < least or low > most else "undecided"


def exactly(value: float) -> Estimate:
    """A number without sampling error."""
    return Estimate(float(value), (float(value), float(value)))


def around(value: float, margin: float) -> Interval:
    """value ± margin: what "equal" means for a measured number."""
    return (value - margin, value + margin)


def mean_of(samples: Float[np.ndarray, "R"]) -> Estimate:
    """The mean of R independent samples with its 95 % Student-t interval."""
    mean, half = float(np.mean(samples, dtype=np.float64)), half_width(samples)
    return Estimate(mean, (mean - half, mean + half))


def difference_of(left: Float[np.ndarray, "R"], right: Float[np.ndarray, "Q"]) -> Estimate:
    """mean(left) − mean(right) of independent samples with Welch's 95 % interval."""
    parts = [np.var(x, ddof=1) / len(x) for x in (left, right)]
    degrees = sum(parts) ** 2 / max(sum(p**2 / (len(x) - 1) for p, x in zip(parts, (left, right), strict=True)), 1e-300)
    difference = float(np.mean(left) - np.mean(right))
    half = float(t_quantile(max(degrees, 1.0)) * math.sqrt(sum(parts)))
    return Estimate(difference, (difference - half, difference + half))


def ratio_of(log_ratio: Estimate) -> Estimate:
    """From the logarithm, where the interval is symmetric, back to the ratio."""
    low, high = log_ratio.interval
    return Estimate(float(np.exp(log_ratio.value)), (float(np.exp(low)), float(np.exp(high))))


def share_of(happened: Bool[np.ndarray, "R"]) -> Estimate:
    """How often something happened in R independent repetitions, with Clopper and Pearson's 95 % interval."""
    found = binomtest(int(happened.sum()), len(happened)).proportion_ci(0.95)
    return Estimate(float(happened.mean()), (float(found.low), float(found.high)))


def root_mean_square(errors: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "K"]:
    """√mean(error²) over the repetitions."""
    return np.sqrt((errors**2).mean(axis=0))


def median(errors: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "K"]:
    """The median over the repetitions, which exists also where the variance is infinite."""
    return np.median(errors, axis=0)


def power_law(
    sizes: list[int],
    errors: Float[np.ndarray, "R K"],
    typical: Callable[[np.ndarray], np.ndarray] = root_mean_square,
    groups: int = 16,
) -> Estimate:
    """k in error ~ n^k: the slope of log error over log n, its interval from groups of independent repetitions.

    `errors` are the sizes of the errors of R repetitions at K sample sizes; in each group their `typical` one counts.
    """
    curves = [typical(group) for group in np.array_split(errors, groups)]
    return mean_of(np.array([np.polyfit(np.log(sizes), np.log(curve), 1)[0] for curve in curves]))
