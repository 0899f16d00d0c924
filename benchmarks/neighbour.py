"""How much of its speed does a compiled run of several seeds keep while another process occupies one core?

    python benchmarks/neighbour.py      # a minute or two; stores benchmarks/results/neighbour.json

Seeds are distributed among the cores, so the slowest core determines the duration of a chunk. If a run that may use C
cores competes with one busy process, its fair share is C / (C + 1) of its usual rate, which is the value to compare
with. In each round, the run is timed with and without the other process.
"""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from upslope.learning.devices import num_cores
from upslope.runs.directory import versions

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "neighbour.json"
ROUNDS = 5
SETTINGS = {"num_envs": 64, "rollout_steps": 128, "epochs": 4, "minibatches": 4}
CASES = {"8 seeds": (8, 400_000), "1 seed": (1, 1_500_000)}


def spin() -> None:
    """Keep one core busy forever."""
    while True:
        pass


@contextmanager
def neighbour(is_there: bool) -> Any:
    """A context during which another process keeps one core busy."""
    process = multiprocessing.Process(target=spin, daemon=True)
    if is_there:
        process.start()
    try:
        yield
    finally:
        if is_there:
            process.kill()
            process.join()


def rate(seeds: int, steps: int, has_neighbour: bool) -> float:
    """Measure a run's steps per second after compilation."""
    arguments = ["jax:CartPole-v1", str(seeds), str(steps), json.dumps(SETTINGS)]
    with neighbour(has_neighbour):
        command = [sys.executable, HERE / "peers" / "measure_upslope.py", *arguments]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(answer.splitlines()[-1])["steps_per_second"])


def main() -> None:
    """Measure both cases, and print and store the results."""
    found: dict[str, Any] = {}
    for name, (seeds, steps) in CASES.items():
        rounds = [{"alone": rate(seeds, steps, False), "beside": rate(seeds, steps, True)} for _ in range(ROUNDS)]
        kept = [one["beside"] / one["alone"] for one in rounds]
        found[name] = {"rounds": rounds, "kept": [round(median(kept), 3), round(min(kept), 3), round(max(kept), 3)]}
        print(name, found[name]["kept"], flush=True)
    cores = num_cores()
    machine = {"processor": platform.processor() or platform.machine(), "cores": cores, "load": os.getloadavg()[2]}
    stored = {"fair share": round(cores / (cores + 1), 3), "cases": found, "machine": machine, "versions": versions()}
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
