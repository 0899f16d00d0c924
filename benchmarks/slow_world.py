"""How much faster does one seed train in a slow environment if one process per core steps a slice of its environments?

    python benchmarks/slow_world.py

Each environment step computes for 2 ms, as a simulator would. A single process and one process per core are timed
alternately, and each ratio is between two consecutive timings. Stores benchmarks/results/slow_world.json.
"""

import json
import statistics
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from cluster_world import Sleeping

import upslope
from upslope.learning.devices import num_cores
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "slow_world.json"
SECONDS, ROUNDS, STEPS = 2e-3, 5, 8192


class Slow(Sleeping):
    """An environment that computes for a fixed time at each step. An episode has 100 steps."""

    def pass_time(self) -> None:
        end = perf_counter() + SECONDS
        while perf_counter() < end:
            pass


def steps_per_second(folder: str, name: str, workers: int | None) -> float:
    """Measure the steps per second of training after the first iteration."""
    settings: dict[str, Any] = {"num_envs": 8, "rollout_steps": 64, "steps": STEPS}
    environment = f"{Path(__file__).stem}:Slow"
    run = upslope.train(environment, quiet=True, folder=folder, name=name, workers=workers, **settings)
    rows = run.metrics()
    taken = rows[-1]["time/elapsed"] - rows[0]["time/elapsed"]
    return (rows[-1]["step"] - rows[0]["step"]) / taken


def main() -> None:
    """Time both variants in every round, and store the results."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(ROUNDS):
            one = steps_per_second(folder, f"one-{number}", 1)
            chosen = steps_per_second(folder, f"chosen-{number}", None)
            rounds.append({"one process": round(one), "as chosen": round(chosen), "ratio": round(chosen / one, 3)})
            print(rounds[-1], flush=True)
    ratio = statistics.median(r["ratio"] for r in rounds)
    result = {"seconds a step": SECONDS, "cores": num_cores(), "ratio": ratio, "rounds": rounds, "versions": versions()}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
