"""How does compiled speed scale with seeds, environments, width and cores? Stores benchmarks/results/scaling.json.

    python benchmarks/scaling.py          # a few minutes
    python benchmarks/scaling.py --plot   # write docs/images/scaling.svg from the stored results (needs Matplotlib)

The environment is CartPole, with 128 steps per iteration and 4 epochs × 4 minibatches. One setting is varied at a time,
starting from 8 seeds, 64 environments, 64-64 networks and all cores. Each point gives the best and the median rate of
seven chunks of iterations, after compilation.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

HERE = Path(__file__).parent
RESULTS, PLOT = HERE / "results" / "scaling.json", HERE.parent / "docs" / "images" / "scaling.svg"
BASE = {"seeds": 8, "environments": 64, "width": 64, "cores": len(os.sched_getaffinity(0))}
VARIED = {
    "seeds": (1, 2, 3, 4, 5, 8, 16, 32),
    "environments": (1, 4, 16, 64, 256, 1024),
    "width": (16, 32, 64, 128, 256),
    "cores": tuple(range(1, BASE["cores"] + 1)),
}
CHUNKS, ROLLOUT = 7, 128
ENOUGH = 400_000
"""Enough environment steps per chunk to make its overhead negligible."""


def measure(point: dict[str, int]) -> dict[str, float]:
    """Measure the steps per second, summed over seeds."""
    from upslope.config.config import configure
    from upslope.config.task import task_of
    from upslope.engines.compiled import CompiledEngine
    from upslope.environments.registry import make
    from upslope.learning.devices import prepare

    prepare(on_host=False)
    world: Any = make("jax:CartPole-v1")
    settings: dict[str, Any] = {"num_envs": point["environments"], "rollout_steps": ROLLOUT, "normalize_rewards": False}
    settings |= {"hidden_sizes": (point["width"],) * 2, "steps": 2_000_000_000}
    task = task_of(configure("jax:CartPole-v1", is_continuous=False, use_preset=False, **settings), world)
    per_iteration = point["seeds"] * point["environments"] * ROLLOUT
    iterations = max(1, ENOUGH // per_iteration)
    engine = CompiledEngine(task, list(range(point["seeds"])), iterations)
    state, _ = engine.advance(engine.start())
    rates = []
    for _ in range(CHUNKS):
        started = perf_counter()
        state, _ = engine.advance(state)
        rates.append(iterations * per_iteration / (perf_counter() - started))
    return {"median": round(statistics.median(rates)), "best": round(max(rates))}


def in_a_process(point: dict[str, int]) -> dict[str, float]:
    """Measure a point in its own process, on as many cores as the point specifies."""
    command = [sys.executable, __file__, "--point", json.dumps(point)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main() -> None:
    """Measure every point, and store the results."""
    found: dict[str, Any] = {name: {} for name in VARIED}
    for name, values in VARIED.items():
        for value in values:
            found[name][value] = in_a_process(BASE | {name: value})
            print(name, value, found[name][value], flush=True)
    from upslope.runs.directory import versions

    RESULTS.write_text(json.dumps({"base": BASE, "steps per second": found, "versions": versions()}, indent=1) + "\n")


def plot() -> None:
    """Plot the stored result."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    found = json.loads(RESULTS.read_text())["steps per second"]
    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.2), sharey=True, layout="constrained")
    for panel, (name, points) in zip(axes, found.items(), strict=True):
        x = [int(value) for value in points]
        panel.plot(x, [p["median"] for p in points.values()], "o-", color="#0072B2")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(x))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xticks(x, [str(value) for value in x])
        panel.set_xlabel(name if name != "environments" else "environments of a seed")
        panel.set_ylim(bottom=0)
        panel.yaxis.set_major_formatter(EngFormatter())
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("environment steps/s, all seeds")
    figure.savefig(PLOT)


if __name__ == "__main__":
    if "--plot" in sys.argv:
        plot()
    elif "--point" in sys.argv:
        asked = json.loads(sys.argv[-1])
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: asked["cores"]]))
        print(json.dumps(measure(asked)))
    else:
        main()
