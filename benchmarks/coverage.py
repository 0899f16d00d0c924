"""How often do the 95 % intervals cover the true value? Draws the scores of a few seeds from known distributions.

    python benchmarks/coverage.py          # simulate and store (a few minutes), or only the named parts
    python benchmarks/coverage.py --table  # write the tables in docs/compare.md from the stored results

`percentile bootstrap` is the usual interval, given for comparison. A simulated sample whose seeds all agree has no
interval and counts as not covered; `told` is the share of samples with an interval. `width` is the median width divided
by that of an oracle interval, which knows the distribution of the error: estimate ± the 95 % quantile of |error|.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill
from scipy import stats

from upslope.analysis.across_environments import mean_estimate, profile, stratified_iqm, stratified_mean
from upslope.analysis.statistics import Estimate, Interval, iqm_of, mean_of, median_of, probability_of_improvement

RESULTS = Path(__file__).parent / "results" / "coverage.json"
PAGE = Path(__file__).parents[1] / "docs" / "compare.md"
SAMPLES = 10_000
FEWER_SAMPLES = 2500
"""Number of samples in the slower simulations."""
MIXTURES = 10
"""Number of random sets of environments, each with a thousand samples of seeds."""
BOOTSTRAPS = 1000
"""Number of samples from which the bootstrap's coverage is computed, and of resamples for each interval."""
SEEDS = (3, 5, 10)

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda r, shape: r.normal(400.0, 50.0, shape),
    "skewed (lognormal, σ 0.7)": lambda r, shape: 100 * r.lognormal(0.0, 0.7, shape),
    "heavy tails (t, 3 degrees)": lambda r, shape: 400 + 50 * r.standard_t(3, shape),
    "ceiling (500 · Beta(5, ½))": lambda r, shape: 500 * r.beta(5.0, 0.5, shape),
    "a fifth gets stuck (N(500, 5), else N(100, 20))": lambda r, shape: np.where(
        r.random(shape) < 0.8, r.normal(500, 5, shape), r.normal(100, 20, shape)
    ),
    "success or fail (1 with 70 %, else 0)": lambda r, shape: (r.random(shape) < 0.7) * 1.0,
}
OURS = {"mean": mean_of, "interquartile mean": iqm_of, "median": median_of}
PLAIN: dict[str, Callable[..., Any]] = {
    "mean": np.mean,
    "interquartile mean": lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
    "median": np.median,
}


def main(only: list[str]) -> None:
    """Simulate and store all parts, or only those given."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "one environment": lambda: {name: one_environment(name) for name in DISTRIBUTIONS},
        "several environments": several_environments,
        "probability of improvement": improvement,
        "performance profile": profiles,
        "mean over two environments": beside_success,
    }
    result = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    for name in only or parts:
        result[name] = parts[name]()
        RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")


def covered(estimates: list[Estimate], truth: float) -> dict[str, float]:
    """Return the share of estimates whose interval covers the true value, the share with an interval, and the median
    width."""
    told = [e.interval for e in estimates if e.interval is not None]
    held = sum(i.low <= truth + 1e-9 and truth - 1e-9 <= i.high for i in told)
    oracle = 2 * float(np.quantile([abs(e.value - truth) for e in estimates], 0.95))
    found = {"coverage": held / len(estimates), "told": len(told) / len(estimates)}
    # If nearly every estimate equals the true value, the oracle's width is zero.
    return found | ({"width": round(float(np.median([i.high - i.low for i in told])) / oracle, 3)} if oracle else {})


def one_environment(name: str) -> dict[str, Any]:
    """Compute the coverage of upslope's intervals and of the percentile bootstrap for the mean, the interquartile mean
    and the median, by number of seeds."""
    random, draw = np.random.default_rng(0), DISTRIBUTIONS[name]
    population = draw(random, (4_000_000,))
    truths = {statistic: float(PLAIN[statistic](population, axis=0)) for statistic in OURS}
    found: dict[str, Any] = {}
    for n in SEEDS:
        samples = draw(random, (SAMPLES, n))
        for statistic, estimate in OURS.items():
            mine = covered([estimate(x) for x in samples], truths[statistic])
            mine["percentile bootstrap"] = bootstrap(samples[:BOOTSTRAPS], statistic, truths[statistic], random)
            found.setdefault(statistic, {})[str(n)] = mine
    print(name, found, flush=True)
    return found


def bootstrap(samples: np.ndarray, statistic: str, truth: float, random: np.random.Generator) -> float:
    """Compute the coverage of the percentile bootstrap."""
    held = 0
    for x in samples:
        resampled = PLAIN[statistic](x[random.integers(0, len(x), (BOOTSTRAPS, len(x)))], axis=1)
        low, high = np.quantile(resampled, [0.025, 0.975])
        held += bool(low <= truth + 1e-9 and truth - 1e-9 <= high)
    return held / len(samples)


Strata = Callable[[np.random.Generator, np.ndarray, np.ndarray, int], list[np.ndarray]]
KINDS: dict[str, Strata] = {
    "normal": lambda r, level, spread, n: [r.normal(a, b, n) for a, b in zip(level, spread, strict=True)],
    "skewed": lambda r, level, spread, n: [
        a + b * r.lognormal(0.0, 0.7, n) for a, b in zip(level, spread, strict=True)
    ],
    "success or fail": lambda r, level, spread, n: [(r.random(n) < a) * 1.0 for a in level],
}


def several_environments() -> dict[str, Any]:
    """Simulate normalised scores whose level and spread differ between environments. Levels and spreads are drawn ten
    times; the result is the mean and the lowest of the ten coverages."""
    found: dict[str, Any] = {}
    for kind, draw in KINDS.items():
        for count in (2, 3, 10):
            parts = [mixture(draw, count, np.random.default_rng([count, k])) for k in range(MIXTURES)]
            found[f"{kind}, {count} environments"] = {
                name: {str(n): averaged([part[name][n] for part in parts]) for n in SEEDS} for name in STRATIFIED
            }
            print(kind, count, found[f"{kind}, {count} environments"], flush=True)
    return found


STRATIFIED = {"mean": stratified_mean, "interquartile mean": stratified_iqm}


def mixture(draw: Strata, count: int, random: np.random.Generator) -> dict[str, dict[int, dict[str, float]]]:
    """Compute the coverage of each statistic over several environments, by number of seeds."""
    level, spread = random.uniform(0.2, 1.0, count), random.uniform(0.02, 0.3, count)
    population = np.concatenate(draw(random, level, spread, 200_000))
    truths = {"mean": float(population.mean()), "interquartile mean": float(stats.trim_mean(population, 0.25))}
    found: dict[str, dict[int, dict[str, float]]] = {name: {} for name in STRATIFIED}
    for n in SEEDS:
        samples = [draw(random, level, spread, n) for _ in range(SAMPLES // MIXTURES)]
        for name, estimate in STRATIFIED.items():
            found[name][n] = covered([estimate(x) for x in samples], truths[name])
    return found


def averaged(cells: list[dict[str, float]]) -> dict[str, float]:
    """Average each number over the draws, and add the lowest coverage."""
    keys = [key for key in cells[0] if all(key in cell for cell in cells)]
    means = {key: round(float(np.mean([cell[key] for cell in cells])), 4) for key in keys}
    return means | {"lowest": min(cell["coverage"] for cell in cells)}


def normal(mean: float, spread: float) -> Draw:
    """Return a sampler of normally distributed scores."""
    return lambda random, shape: random.normal(mean, spread, shape)


def success(share: float) -> Draw:
    """Return a sampler of scores that are 1 with this probability and otherwise 0."""
    return lambda random, shape: (random.random(shape) < share) * 1.0


def better(apart: float, first: float, second: float) -> float:
    """Return P(X > Y) for two normal distributions: Φ((μ_x − μ_y) / √(σ_x² + σ_y²))."""
    return float(stats.norm.cdf(apart / np.hypot(first, second)))


def improvement() -> dict[str, Any]:
    """Simulate P(X > Y) for normal scores 0, 1 and 2 standard deviations apart, unequal spreads, success or failure,
    and the mean over three environments."""
    cases: dict[str, tuple[float, int, Draw, Draw]] = {
        "normal, the same": (0.5, 1, normal(0, 1), normal(0, 1)),
        "normal, 1 σ apart": (better(1, 1, 1), 1, normal(1, 1), normal(0, 1)),
        "normal, 2 σ apart": (better(2, 1, 1), 1, normal(2, 1), normal(0, 1)),
        "normal, 1 apart, σ 1 and 0.2": (better(1, 1, 0.2), 1, normal(1, 1), normal(0, 0.2)),
        "success or fail, 90 % against 50 %": (0.9 * 0.5 + (0.9 * 0.5 + 0.1 * 0.5) / 2, 1, success(0.9), success(0.5)),
        "normal, 1 σ apart, three environments": (better(1, 1, 1), 3, normal(1, 1), normal(0, 1)),
    }
    found: dict[str, Any] = {}
    random = np.random.default_rng(5)
    for name, (truth, count, first, second) in cases.items():
        for n in SEEDS:
            estimates = []
            for _ in range(FEWER_SAMPLES):
                parts = [
                    probability_of_improvement(first(random, (n,)), second(random, (n,))) for _ in range(int(count))
                ]
                estimates.append(mean_estimate(parts))
            found.setdefault(name, {})[str(n)] = covered(estimates, truth)
        print(name, found[name], flush=True)
    return found


def profiles() -> dict[str, Any]:
    """Simulate the share of seeds above a threshold, in one environment and averaged over five."""
    random, found = np.random.default_rng(6), {}
    for name, shares in (
        ("one environment, 70 %", [0.7]),
        ("five environments, 10 % to 90 %", [0.1, 0.3, 0.5, 0.7, 0.9]),
    ):
        for n in SEEDS:
            estimates = []
            for _ in range(FEWER_SAMPLES):
                band = profile([(random.random(n) < p) * 1.0 for p in shares], np.asarray([0.5]))
                estimates.append(Estimate(float(band.mean[0]), Interval(float(band.low[0]), float(band.high[0]))))
            found.setdefault(name, {})[str(n)] = covered(estimates, float(np.mean(shares)))
    return found


def beside_success() -> dict[str, Any]:
    """Simulate the mean over two environments. In one, seeds succeed or fail, so they may all agree; in the other, they
    differ only slightly."""
    random, found = np.random.default_rng(7), {}
    for share in (0.9, 0.7):
        for n in SEEDS:
            samples = [[success(share)(random, (n,)), normal(0.5, 0.03)(random, (n,))] for _ in range(FEWER_SAMPLES)]
            mine = covered([stratified_mean(x) for x in samples], (share + 0.5) / 2)
            found.setdefault(f"success with {share:.0%}, and normal with σ 0.03", {})[str(n)] = mine
    return found


def tables(result: dict[str, Any]) -> str:
    """Format all tables as Markdown."""
    seeds = [str(n) for n in SEEDS]
    head = "".join(f" {n} seeds |" for n in seeds)
    lines = [f"| seeds are | statistic |{head}{head.replace(' |', ', bootstrap |')}", f"|---|---|{'---|' * 6}"]
    for name, rows in result["one environment"].items():
        for statistic, by in rows.items():
            cells = [shown(by[n]) for n in seeds] + [f"{by[n]['percentile bootstrap']:.1%}" for n in seeds]
            lines.append(f"| {name} | {statistic} | {' | '.join(cells)} |")
    lines += ["", f"| over environments | statistic |{head}", f"|---|---|{'---|' * 3}"]
    for name, rows in result["several environments"].items():
        for statistic, by in rows.items():
            lines.append(f"| {name} | {statistic} | {' | '.join(shown(by[n]) for n in seeds)} |")
    for key in ("probability of improvement", "performance profile", "mean over two environments"):
        lines += ["", f"| {key} |{head}", f"|---|{'---|' * 3}"]
        lines += [f"| {name} | {' | '.join(shown(by[n]) for n in seeds)} |" for name, by in result[key].items()]
    return "\n".join(lines)


def shown(cell: dict[str, float]) -> str:
    """Format a table cell: the coverage (and the lowest, if there are several), the width, and, if it is below 1, the
    share with an interval."""
    told = cell.get("told", 1.0)
    least = f", least {cell['lowest']:.1%}" if "lowest" in cell else ""
    width = f", ×{cell['width']:.2f}" if "width" in cell else ""
    return f"{cell['coverage']:.1%}{least}{width}" + (f" ({told:.0%} given)" if told < 0.9995 else "")


def write_page() -> None:
    """Write the tables between the markers in docs/compare.md."""
    result = json.loads(RESULTS.read_text("utf-8"))
    fill(PAGE, "coverage", tables(result))


if __name__ == "__main__":
    write_page() if sys.argv[1:] == ["--table"] else main(sys.argv[1:])
