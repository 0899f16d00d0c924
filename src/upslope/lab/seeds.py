"""Measure how often a comparison with few seeds declares the wrong winner."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from upslope.lab.credit import ESTIMATORS, learn
from upslope.lab.finding import (
    ABOVE_ZERO,
    BELOW_ZERO,
    Estimate,
    Finding,
    Line,
    Outcome,
    Panel,
    against_theory,
    difference_of,
)
from upslope.lab.play import run_in_threads

LENGTH = 8


def share_wrong(
    better: Float[np.ndarray, "S"],
    worse: Float[np.ndarray, "S"],
    count: int,
    generator: np.random.Generator,
    draws: int,
) -> float:
    """The share of draws in which `count` seeds of the worse setting have the higher mean."""
    left, right = (generator.choice(pool, (draws, count)).mean(axis=1) for pool in (better, worse))
    return float(np.mean(right > left))


def resampled_shares(
    better: Float[np.ndarray, "S"], worse: Float[np.ndarray, "S"], counts: Sequence[int], seed: int, draws: int
) -> Float[np.ndarray, "R K"]:
    """`share_wrong` for each number of seeds in resampled pools [R, K], because the pools are samples too."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(200):
        pools = [generator.choice(pool, len(pool)) for pool in (better, worse)]
        rows.append([share_wrong(pools[0], pools[1], count, generator, draws) for count in counts])
    return np.array(rows)


def seeds(
    seed: int = 0, pool: int = 128, iterations: int = 14, counts: Sequence[int] = (1, 3, 5, 10), draws: int = 2000
) -> Outcome:
    """Compare two settings that really differ, with 1, 3, 5 and 10 seeds drawn from many."""
    # The pools have different seeds, because shared seeds would correlate their results.
    pools = (range(seed, seed + pool), range(seed + pool, seed + 2 * pool))
    names = ("baseline", "to_go")
    runs = [partial(learn, ESTIMATORS[n], LENGTH, each, iterations) for n, each in zip(names, pools, strict=True)]
    better, worse = (key[:, -1] for key in run_in_threads(runs))
    difference = difference_of(better, worse)
    generator = np.random.default_rng(seed)
    rate = np.array([share_wrong(better, worse, count, generator, 20 * draws) for count in counts])
    resampled = resampled_shares(better, worse, counts, seed + 1, draws)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    std = np.sqrt(better.var(ddof=1) + worse.var(ddof=1))
    theory = norm.cdf(-difference.value * np.sqrt(counts) / std)
    fall = np.quantile(resampled[:, -1] - resampled[:, 0], [0.025, 0.975])
    return Outcome(
        findings=(
            Finding("true_difference", difference, ABOVE_ZERO),
            Finding("one_seed", Estimate(rate[0], (low[0], high[0])), (0.1, math.inf)),
            Finding("many_seeds", Estimate(rate[-1] - rate[0], (fall[0], fall[1])), BELOW_ZERO),
        ),
        panels=(
            against_theory("wrong", Line("measured", counts, rate, low, high), theory),
            Panel("pools", (Line("baseline", *histogram(better)), Line("to_go", *histogram(worse))), is_bars=True),
        ),
        numbers={"pool": pool, "episodes": 8 * iterations, "length": LENGTH, "most": max(counts)},
    )


def histogram(values: Float[np.ndarray, "S"]) -> tuple[list[str], list[float]]:
    """A histogram of the seeds' values in ten bins."""
    counts, edges = np.histogram(values, bins=10, range=(0.0, 1.0))
    return [f"{left:.1f}–{left + 0.1:.1f}" for left in edges[:-1]], [float(c) for c in counts]
