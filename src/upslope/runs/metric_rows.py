"""The rows of metrics.jsonl: one per iteration and seed."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from upslope.core.messages import PREFIX
from upslope.engines.base import Chunk, EpisodeRow
from upslope.runs.directory import INFO, STOP

NONE: Mapping[int, float] = {}


class Ended:
    """A seed's finished episodes in a chunk, ordered by step. Prefix sums make the means fast to compute, since a chunk
    may contain many episodes."""

    def __init__(self, rows: list[EpisodeRow], log_info: Sequence[str] = ()):
        self.log_info = log_info
        numbers = np.asarray([row[4] for row in rows], float).reshape(len(rows), len(log_info))
        is_known = np.isfinite(numbers)
        sums = [np.cumsum(x, axis=0) for x in (np.where(is_known, numbers, 0.0), is_known)]
        self.sums, self.known = (np.concatenate([np.zeros((1, len(log_info))), x]) for x in sums)
        self.steps = np.asarray([row[0] for row in rows])
        returns = np.asarray([row[2] for row in rows], float)
        is_finite = np.isfinite(returns)
        self.returns = np.cumsum([0.0, *np.where(is_finite, returns, 0.0)])
        self.not_finite = np.cumsum([0, *~is_finite])
        self.lengths = np.cumsum([0, *(row[3] for row in rows)])

    def between(self, before: int, after: int) -> dict[str, Any]:
        """Return the number of episodes that ended in (before, after], and their mean return, length and numbers from
        info."""
        first, last = np.searchsorted(self.steps, [before, after], side="right")
        count = int(last - first)
        # A diverged agent may receive nan as its reward. This must not affect the means of later iterations.
        is_known = count and self.not_finite[last] == self.not_finite[first]
        mean_return = (self.returns[last] - self.returns[first]) / count if is_known else None
        mean_length = (self.lengths[last] - self.lengths[first]) / count if count else None
        found = {"episode/count": count, "episode/return": mean_return, "episode/length": mean_length}
        for k, key in enumerate(self.log_info):
            known = self.known[last, k] - self.known[first, k]
            found[INFO + key] = finite(float((self.sums[last, k] - self.sums[first, k]) / known)) if known else None
        return found


def metric_rows(
    chunk: Chunk,
    seeds: Sequence[int],
    iteration: int,
    clocks: dict[str, float],
    log_info: Sequence[str] = (),
    stopped: Mapping[int, float] = NONE,
) -> Iterator[str]:
    """Yield one JSON line per iteration and seed; iterations are numbered from `iteration`.

    Values that are not finite become null, but health metrics that are not finite are omitted. `stopped` maps the
    indices of seeds that stop to the returns that they reached, which are written to their last rows."""
    health = {name: x for name, x in chunk.metrics.items() if name.startswith(PREFIX)}
    other = {name: x for name, x in chunk.metrics.items() if name not in health}
    values, health_values = (
        np.asarray(list(metrics.values())).reshape(-1, *chunk.steps.shape) for metrics in (other, health)
    )
    has_health = np.asarray(np.isfinite(health_values).any(axis=0))
    for s, seed in enumerate(seeds):
        ended = Ended(chunk.episodes[s], log_info)
        for i in range(chunk.steps.shape[1]):
            before, after = int(chunk.before[s, i]), int(chunk.steps[s, i])
            if after == before:
                continue
            row: dict[str, Any] = {"iteration": iteration + i, "seed": seed, "step": after}
            row |= ended.between(before, after)
            row |= {n: finite(v) for n, v in zip(other, values[:, s, i].tolist(), strict=True)}
            if has_health[s, i]:
                row |= {n: v for n, v in zip(health, health_values[:, s, i].tolist(), strict=True) if math.isfinite(v)}
            if s in stopped and after == int(chunk.steps[s, -1]):
                row[STOP] = stopped[s]
            yield json.dumps(row | clocks, allow_nan=False) + "\n"


def last_finite(x: np.ndarray) -> list[float]:
    """Return each seed's last finite value of a metric [S, I], or nan if there is none."""
    rows = [row[np.isfinite(row)] for row in x]
    return [float(row[-1]) if row.size else math.nan for row in rows]


def finite(x: float) -> float | None:
    """Return the number, or None if it is not finite, since JSON cannot represent it."""
    return x if math.isfinite(x) else None
