"""Numbers for a reader: as many digits as their spread supports, and the interval of a mean over few seeds."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVEL = 0.95
"""The confidence level of every interval."""
FEW_SEEDS = 5
"""With fewer seeds the evidence is thin, and a display that shows an interval says so."""
UNKNOWN = "–"
Values = Sequence[float] | np.ndarray
MAX_DECIMALS = 6


def number(value: float, spread: float = math.nan) -> str:
    """Write a value in the first two digits of its spread: the width of its interval, or the range of its seeds.

    A value without a spread gets four significant digits, and a value that is not finite a dash.
    """
    if not math.isfinite(value):
        return UNKNOWN
    if spread > 0 and math.isfinite(spread):
        return f"{value:z,.{min(max(1 - math.floor(math.log10(spread)), 0), MAX_DECIMALS)}f}"
    return f"{value:z,.0f}" if abs(value) >= 1000 else f"{value:z.4g}"


def with_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """The value and `[low, high]`, in the digits that the interval supports."""
    return number(value, high - low), f"[{number(low, high - low)}, {number(high, high - low)}]"


def plus_minus(value: float, half: float) -> str:
    """`14.0 ± 3.9`."""
    return f"{number(value, 2 * half)} ± {number(half, 2 * half)}"


def finite(values: Values) -> list[float]:
    """The values that are finite; a seed that has not finished an episode reports nan."""
    return [value for value in values if math.isfinite(value)]


def range_of(values: Values) -> float:
    """The largest finite value minus the smallest; 0 where there are fewer than two."""
    known = finite(values)
    return max(known) - min(known) if known else 0.0


def t_quantile(freedom: Any) -> Any:
    """t_{0.975, ν}, the quantile of Student's distribution that a 95 % interval needs; also of an array of ν."""
    from scipy.special import stdtrit  # importing it takes a fifth of a second, which a single seed does not need

    return stdtrit(freedom, (1 + LEVEL) / 2)


def half_width(x: Values) -> float:
    """Half of Student's interval of a mean, t_{0.975, n−1} · s/√n, over the n finite values of x; nan below two.

    Exact for normal values.
    """
    known = np.asarray(x, np.float64)
    known = known[np.isfinite(known)]
    n = len(known)
    return float(t_quantile(n - 1) * np.std(known, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
