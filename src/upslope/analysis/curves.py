"""Prepare curves for drawing: thinned without losing extremes, and with all seeds on a common axis of steps."""

import numpy as np

from upslope.analysis.records import Record


def thin(x: np.ndarray, y: np.ndarray, buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most 2·buckets + 2 points: the lowest and the highest of each bucket, the first, and the last.

    Buckets hold equal numbers of neighbouring points, so no peak disappears, however narrow. Points that are not finite
    are left out.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    n = len(x)
    if n <= 2 * buckets:
        return x, y
    size = -(-n // buckets)
    room = size * buckets - n
    offset = np.arange(buckets) * size
    lowest = offset + np.pad(y, (0, room), constant_values=np.inf).reshape(buckets, size).argmin(axis=1)
    highest = offset + np.pad(y, (0, room), constant_values=-np.inf).reshape(buckets, size).argmax(axis=1)
    # The index of a bucket of padding lies beyond the end.
    kept = np.unique(np.concatenate([[0, n - 1], np.minimum(lowest, n - 1), np.minimum(highest, n - 1)]))
    return x[kept], y[kept]


def common_steps(record: Record, points: int) -> np.ndarray:
    """Equally spaced environment steps [P] within the range that every seed covers, so that means are always over all
    seeds."""
    first, last = np.nanmax(record.steps[:, 0]), record.reached
    return np.linspace(first, last, min(points, record.steps.shape[1]))


def at_steps(record: Record, name: str, grid: np.ndarray) -> np.ndarray:
    """A metric of each seed at the steps of a grid [S, P]: the mean over the iterations since the previous step.

    If no iteration ended since then, it is the last known value. It is nan outside a seed's range of iterations.
    """
    found = np.full((len(record.seeds), len(grid)), np.nan)
    for s, (steps, values) in enumerate(zip(record.steps, record.metrics[name], strict=True)):
        known = np.isfinite(values) & np.isfinite(steps)
        if not known.any():
            continue
        steps, values = steps[known], values[known]
        sums = np.concatenate([[0.0], np.cumsum(values)])
        until = np.searchsorted(steps, grid, side="right")
        since = np.concatenate([[0], until[:-1]])
        since = np.where(until > since, since, until - 1)
        seen = (until > 0) & (grid <= np.nanmax(record.steps[s]) + 1)
        found[s, seen] = (sums[until] - sums[since])[seen] / (until - since)[seen]
    return found
