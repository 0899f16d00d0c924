"""Prepare curves for plots: thin them without losing extremes, and put all seeds on a common axis of steps."""

import numpy as np

from upslope.analysis.records import Record


def thin(x: np.ndarray, y: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most 2·buckets + 2 points: the minimum and maximum of each bucket, and both ends of the curve.

    Buckets hold equal numbers of neighbouring points, so even the narrowest peak is kept. Non-finite points are left
    out.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    n = len(x)
    if n <= 2 * buckets:
        return x, y
    size = -(-n // buckets)
    padding = size * buckets - n
    offset = np.arange(buckets) * size
    lowest = offset + np.pad(y, (0, padding), constant_values=np.inf).reshape(buckets, size).argmin(axis=1)
    highest = offset + np.pad(y, (0, padding), constant_values=-np.inf).reshape(buckets, size).argmax(axis=1)
    # Indices that fall in the padding are replaced by the index of the last point.
    kept = np.unique(np.concatenate([[0, n - 1], np.minimum(lowest, n - 1), np.minimum(highest, n - 1)]))
    return x[kept], y[kept]


def common_steps(record: Record, points: int) -> np.ndarray:
    """Equally spaced environment steps [P] within the range that all seeds cover, so that every mean is taken over all
    seeds."""
    first, last = np.nanmax(record.steps[:, 0]), min(record.reached, np.nanmax(record.steps))
    return np.linspace(first, last, min(points, record.steps.shape[1]))


def at_steps(record: Record, name: str, grid: np.ndarray) -> np.ndarray:
    """A metric of each seed at the steps of a grid [S, P]: the mean over the iterations since the previous grid step.

    If no iteration has ended since then, the last known value is used. Outside the seed's range of iterations, the
    result is nan.
    """
    found = np.full((len(record.seeds), len(grid)), np.nan)
    for s, (steps, values) in enumerate(zip(record.steps, record.metrics[name], strict=True)):
        finite = np.isfinite(values) & np.isfinite(steps)
        if not finite.any():
            continue
        steps, values = steps[finite], values[finite]
        sums = np.concatenate([[0.0], np.cumsum(values)])
        end = np.searchsorted(steps, grid, side="right")
        start = np.concatenate([[0], end[:-1]])
        start = np.where(end > start, start, end - 1)
        covered = (end > 0) & (grid <= np.nanmax(record.steps[s]) + 1)
        found[s, covered] = (sums[end] - sums[start])[covered] / (end - start)[covered]
    return found
