"""Compare upslope's interval for the interquartile mean over environments with alternatives, by their coverage.

    python benchmarks/coverage_rivals.py   # stores benchmarks/results/coverage_rivals.json

Scores are normally distributed, with a different mean and spread in each environment, as in `coverage.py`. Means and
spreads are drawn ten times, with 400 samples each time.
"""

import json
from pathlib import Path

import numpy as np
from coverage import MIXTURES, SEEDS, averaged, covered

from upslope.analysis.across_environments import between_quartiles, mean_variance, stratified_iqm, welch
from upslope.analysis.statistics import Estimate

RESULTS = Path(__file__).parent / "results" / "coverage_rivals.json"
SAMPLES, RESAMPLES = 400, 200


def iqm(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the middle half of the scores [..., N]."""
    return np.sort(scores, axis=-1) @ between_quartiles(scores.shape[-1])


def winsorised(x: np.ndarray) -> list[float]:
    """Return Tukey and McLaughlin's variance of each environment's contribution, from scores x [M, S]."""
    every = np.sort(x.ravel())
    cut = every.size // 4
    return [mean_variance(np.clip(row, every[cut], every[-1 - cut])) * (2 / len(x)) ** 2 for row in x]


def tukey(x: np.ndarray, random: np.random.Generator) -> Estimate:
    """Base the interval only on Tukey and McLaughlin's variance."""
    return Estimate(float(iqm(x.ravel())), welch(float(iqm(x.ravel())), winsorised(x), list(x)))


def jackknife(x: np.ndarray, random: np.random.Generator) -> Estimate:
    """Use the jackknife, which leaves out one seed of one environment at a time: v = (S−1)/S Σ (T_−i − mean)²."""
    count, n = x.shape
    left = iqm(np.stack([np.delete(x.ravel(), i) for i in range(x.size)])).reshape(count, n)
    parts = [(n - 1) / n * float(((row - row.mean()) ** 2).sum()) for row in left]
    return Estimate(float(iqm(x.ravel())), welch(float(iqm(x.ravel())), parts, list(x)))


def bootstrap_t(x: np.ndarray, random: np.random.Generator) -> Estimate:
    """Use the stratified bootstrap's standard error times √(S/(S−1)) (Hesterberg 2015), with the same t quantile."""
    count, n = x.shape
    drawn = np.take_along_axis(x[None], random.integers(0, n, (RESAMPLES, count, n)), axis=-1)
    variance = iqm(drawn.reshape(RESAMPLES, -1)).var(ddof=1) * n / (n - 1)
    parts = np.asarray(winsorised(x))
    scaled = parts * variance / parts.sum() if parts.sum() > 0 else np.full(count, variance / count)
    return Estimate(float(iqm(x.ravel())), welch(float(iqm(x.ravel())), list(scaled), list(x)))


RIVALS = {
    "used": lambda x, random: stratified_iqm(list(x)),
    "Tukey and McLaughlin alone": tukey,
    "jackknife": jackknife,
    "bootstrap t": bootstrap_t,
}


def main() -> None:
    """Simulate every case, and store the coverages."""
    found = {}
    for count in (2, 3, 10):
        for n in SEEDS:
            cells: dict[str, list[dict[str, float]]] = {name: [] for name in RIVALS}
            for k in range(MIXTURES):
                random = np.random.default_rng([count, k])
                level, spread = random.uniform(0.2, 1.0, count), random.uniform(0.02, 0.3, count)
                truth = float(iqm((level + spread * random.normal(size=(200_000, count))).ravel()))
                samples = level[:, None] + spread[:, None] * random.normal(size=(SAMPLES, count, n))
                for name, rival in RIVALS.items():
                    cells[name].append(covered([rival(x, random) for x in samples], truth))
            found[f"{count} environments, {n} seeds"] = {name: averaged(each) for name, each in cells.items()}
            print(count, n, found[f"{count} environments, {n} seeds"], flush=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
