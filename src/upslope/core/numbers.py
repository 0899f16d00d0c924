"""Number formatting with as many digits as the spread supports, and confidence intervals over a few seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.95
"""The confidence level of every interval."""
FEW_SEEDS = 5
"""Displays warn that an interval is unreliable if there are fewer seeds than this."""
UNKNOWN = "–"
Values = Sequence[float] | np.ndarray
MAX_DECIMALS = 6
LARGE = 1e12
MAX_COUNT = 2**31 - 1
"""Largest integer in any setting, since JAX counts in 32 bits."""


def number(value: float, spread: float = math.nan) -> str:
    """Format a value to the second significant digit of its spread, i.e. the width of its interval or its range over
    seeds.

    A value without a spread gets four significant digits, and a non-finite value is shown as a dash. Values from 10¹²
    are shown with an exponent.
    """
    if not math.isfinite(value):
        return UNKNOWN
    has_spread = spread > 0 and math.isfinite(spread)
    if abs(value) >= LARGE:
        digits = math.floor(math.log10(abs(value))) - math.floor(math.log10(spread)) + 1 if has_spread else 3
        return f"{value:.{min(max(digits, 0), MAX_DECIMALS)}e}"
    if has_spread:
        return f"{value:z,.{min(max(1 - math.floor(math.log10(spread)), 0), MAX_DECIMALS)}f}"
    return f"{value:z,.0f}" if abs(value) >= 1000 else f"{value:z.4g}"


def with_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """The value and `[low, high]`, with as many digits as the interval supports."""
    return number(value, high - low), f"[{number(low, high - low)}, {number(high, high - low)}]"


def plus_minus(value: float, half: float) -> str:
    """A value with the half-width of its interval, e.g. `14.0 ± 3.9`."""
    return f"{number(value, 2 * half)} ± {number(half, 2 * half)}"


def finite(values: Values) -> list[float]:
    """The finite values. A seed that has not finished an episode reports nan."""
    return [value for value in values if math.isfinite(value)]


def range_of(values: Values) -> float:
    """The largest finite value minus the smallest; 0 if there are fewer than two."""
    known = finite(values)
    return max(known) - min(known) if known else 0.0


def t_quantile(freedom: Any) -> Any:
    """t_{0.975, ν}, the quantile of Student's t-distribution for a 95 % interval; ν may be an array."""
    from scipy.special import stdtrit  # imported lazily: it takes 0.2 s, and a single seed does not need it

    return stdtrit(freedom, (1 + LEVEL) / 2)


def half_width(x: Values) -> float:
    """Half-width of Student's t interval for the mean, t_{0.975, n−1} · s/√n, over the n finite values; nan if n < 2.

    The interval is exact for normally distributed values.
    """
    known = np.asarray(x, np.float64)
    known = known[np.isfinite(known)]
    n = len(known)
    return float(t_quantile(n - 1) * np.std(known, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
