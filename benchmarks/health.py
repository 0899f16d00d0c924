"""What do the health metrics cost? Stores benchmarks/results/health.json.

    python benchmarks/health.py

The compiled loop of one seed is timed alternately with and without the metrics, at the start of a run with a budget of
500,000 steps. The results are the minimum CPU time of each variant, and the median ratio of consecutive timings. The
loop runs on one core, because CPU time includes threads that busy-wait. A run of fewer than about 100 iterations
computes the metrics in every iteration.
"""

import json
import statistics
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any
from unittest.mock import patch

import jax
from cores import stay_on_one_core

from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.environments.registry import make
from upslope.learning import iteration
from upslope.learning.iteration import initialise, iterate_many

RESULTS = Path(__file__).parent / "results" / "health.json"
TURNS = 20
CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "ppo, CartPole, 8 × 128": ("jax:CartPole-v1", "ppo", {}, 100),
    "ppo, CartPole, 64 × 128": ("jax:CartPole-v1", "ppo", {"num_envs": 64}, 20),
    "a2c, CartPole, 8 × 5": ("jax:CartPole-v1", "a2c", {}, 4000),
    "reinforce, CartPole": ("jax:CartPole-v1", "reinforce", {}, 100),
    "ppo, Pendulum, 2048": ("jax:Pendulum-v1", "ppo", {}, 20),
}


def program(name: str, with_health: bool) -> Any:
    """Compile the loop of one seed, and return it with its initial state."""
    environment, algorithm, settings, iterations = CASES[name]
    world: Any = make(environment)
    is_box = "Pendulum" in environment
    config = configure(environment, algorithm, is_continuous=is_box, use_preset=False, steps=500_000, **settings)
    task = task_of(config, world)
    state = initialise(task, 0)
    with patch.object(iteration, "HealthProbe", iteration.HealthProbe if with_health else lambda *_, **__: None):
        lowered = jax.jit(partial(iterate_many, task, iterations=iterations)).lower(state)
        return lowered.compile(iteration.QUICK), state


def cost(name: str) -> dict[str, float]:
    """Measure the milliseconds per iteration, without and with the metrics."""
    programs = {"without": program(name, False), "with": program(name, True)}
    spent: dict[str, list[float]] = {which: [] for which in programs}
    for _ in range(TURNS):
        for which, (compiled, state) in programs.items():
            started = process_time()
            jax.block_until_ready(compiled(state))
            spent[which].append(1e3 * (process_time() - started) / CASES[name][3])
    found = {f"{which}, ms": round(min(ms), 4) for which, ms in spent.items()}
    ratios = [there / without for there, without in zip(spent["with"], spent["without"], strict=True)]
    return found | {"cost, %": round(100 * (statistics.median(ratios) - 1), 1)}


def main() -> None:
    """Measure and store every case."""
    stay_on_one_core()
    results = {}
    for name in CASES:
        results[name] = cost(name)
        print(name, results[name], flush=True)
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
