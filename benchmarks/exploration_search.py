"""Search settings with which the compiled mountain car is solved soon, with a bonus: a random search in two stages.

    python benchmarks/exploration_search.py --trials 150   # prints the best; exploration.py holds what it found

A trial's score is the median of the steps after which the last 100 training episodes have a mean return of −130. The
first stage tries every trial on eight seeds, the second the best twelve on sixteen others; neither uses the seeds
that exploration.py judges.
"""

import argparse
import json
import tempfile
from typing import Any

import numpy as np

import upslope

ENVIRONMENT = "jax:MountainCar-v0"
SOLVED = -130.0
BUDGET = 150_000
FIRST, SECOND = range(100, 108), range(110, 126)
KEPT = 12


def main() -> None:
    """Search, and print the settings of the second stage, the best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--random-seed", type=int, default=0)
    flags = parser.parse_args()
    generator = np.random.default_rng(flags.random_seed)
    tried = []
    for trial in range(flags.trials):
        settings = drawn(generator)
        tried.append((score(settings, FIRST), trial, settings))
        print(f"{trial}: {tried[-1][0]:,.0f}, best {min(tried)[0]:,.0f}", flush=True)
    again = [(score(settings, SECOND), first, settings) for first, _, settings in sorted(tried)[:KEPT]]
    for second, first, settings in sorted(again, key=lambda row: row[0]):
        print(f"{second:,.0f} (first stage {first:,.0f}): {json.dumps(settings)}")


def drawn(generator: np.random.Generator) -> dict[str, Any]:
    """Settings at random."""

    def spread(low: float, high: float) -> float:
        return float(f"{np.exp(generator.uniform(np.log(low), np.log(high))):.2g}")

    def one_of(*values: Any) -> Any:
        return values[generator.integers(len(values))]

    return {
        "num_envs": one_of(8, 16, 16, 32),
        "rollout_steps": one_of(16, 32, 64, 128),
        "epochs": one_of(4, 10, 20),
        "minibatches": one_of(4, 8),
        "learning_rate": spread(3e-4, 5e-3),
        "gamma": 1 - spread(0.005, 0.05),
        "lambda_": 1 - spread(0.01, 0.1),
        "entropy_coefficient": one_of(0.0, 0.0, 0.003, 0.01),
        "bonus": "count",
        "bonus_coefficient": spread(0.05, 2.0),
        "bonus_gamma": 1 - spread(0.01, 0.2),
        "bonus_episodic": one_of(False, True),
        "bonus_kwargs": {"scope": one_of("lifelong", "lifelong", "both")},
    }


def score(settings: dict[str, Any], seeds: range) -> float:
    """The median of the steps until it is solved; a seed that does not get there counts as the budget."""
    with tempfile.TemporaryDirectory() as folder:
        run = upslope.train(
            ENVIRONMENT, seed=seeds[0], seeds=len(seeds), steps=BUDGET, stop_at_return=SOLVED, folder=folder,
            name="run", quiet=True, **settings,
        )  # fmt: skip
        episodes = run.episodes()
    steps = []
    for seed in run.seeds:
        own = episodes[episodes["seed"] == seed]
        means = np.convolve(own["return"].astype(float), np.full(100, 0.01), "valid")
        solved = np.flatnonzero(means >= SOLVED)
        steps.append(int(own["step"][solved[0] + 99]) if len(solved) else BUDGET)
    return float(np.median(steps))


if __name__ == "__main__":
    main()
