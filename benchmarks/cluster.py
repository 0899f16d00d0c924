"""What survives on a Ray cluster, and what its transport costs. Stores benchmarks/results/cluster.json.

    python benchmarks/cluster.py faults --count 20    # each fault 20 times, on one cluster of three nodes
    python benchmarks/cluster.py overhead             # seconds an iteration through pipes and through actors

It needs the extra `ray`. The nodes are raylets of this machine, each with one processor for workers. A fault strikes
within a chunk that is drawn from a seed; then every row, episode and array of the run is held against those of a run
without faults.
"""

import argparse
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

import upslope
from upslope.engines.cluster import ActorChannel
from upslope.engines.workers import WorkersEngine
from upslope.runs.directory import RunDirectory

RESULTS = Path(__file__).parent / "results" / "cluster.json"
SETTINGS: dict[str, Any] = {"seeds": 3, "steps": 4_000, "preset": False, "num_envs": 2, "rollout_steps": 32}
CHUNKS = SETTINGS["steps"] // (SETTINGS["num_envs"] * SETTINGS["rollout_steps"])
LENGTHS = {"CartPole-v1": 102_400, "HalfCheetah-v5": 51_200}
"""Environments whose overhead is measured, and steps per seed."""
AUTO = upslope.Placement("auto")
Strike = Callable[[WorkersEngine], None]


def actor_killed(engine: WorkersEngine) -> None:
    """SIGKILL the process of a worker while it is at work."""
    channel = engine.workers[0].channel
    assert isinstance(channel, ActorChannel)
    process = int(channel.place.rpartition(" ")[2])
    threading.Timer(0.005, os.kill, (process, signal.SIGKILL)).start()


def faults_of(nodes: Cluster) -> dict[str, Strike]:
    """Each fault by its name."""

    def lose(engine: WorkersEngine) -> None:
        nodes.remove_node(nodes.add_on.pop(), allow_graceful=False)

    def lose_and_add(engine: WorkersEngine) -> None:
        lose(engine)
        nodes.add_on.append(nodes.add_node(num_cpus=1))

    def add(engine: WorkersEngine) -> None:
        nodes.add_on.append(nodes.add_node(num_cpus=1))
        engine.looked = -1e9

    return {
        "a worker killed in an iteration": actor_killed,
        "a node lost": lose,
        "a node lost, another added": lose_and_add,
        "a node added": add,
    }


def faults(count: int) -> dict[str, Any]:
    """Let each fault strike `count` runs; how many ended as the run without faults."""
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes.add_on = [nodes.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    found: dict[str, Any] = {}
    draw, advance = np.random.default_rng(0), WorkersEngine.advance
    with tempfile.TemporaryDirectory() as folder:
        whole = contents(trained(Path(folder), "whole", workers=1))
        for name, strike in faults_of(nodes).items():
            same, seconds = 0, []
            for number in range(count):
                while len(nodes.add_on) != 2:  # as at first
                    if len(nodes.add_on) > 2:
                        nodes.remove_node(nodes.add_on.pop(), allow_graceful=False)
                    else:
                        nodes.add_on.append(nodes.add_node(num_cpus=1))
                chunk = int(draw.integers(1, CHUNKS))
                WorkersEngine.advance = struck_at(chunk, strike, advance)
                began = time.perf_counter()
                same += contents(trained(Path(folder), f"{name} {number}", cluster=AUTO)) == whole
                seconds.append(time.perf_counter() - began)
            found[name] = {"tried": count, "same run": same, "median seconds": round(median(seconds), 1)}
            print(name, found[name], flush=True)
    return found


def struck_at(chunk: int, strike: Strike, advance: Callable[..., Any]) -> Any:
    """`WorkersEngine.advance` with a fault in this chunk of the run."""
    seen = iter(range(10**6))

    def advance_or_strike(engine: WorkersEngine, *arguments: Any) -> Any:
        if next(seen) == chunk:
            strike(engine)
        return advance(engine, *arguments)

    return advance_or_strike


def trained(folder: Path, name: str, **where: Any) -> RunDirectory:
    """A run of the settings."""
    return RunDirectory(upslope.train("CartPole-v1", folder=folder, name=name, quiet=True, **SETTINGS, **where).path)


def contents(run: RunDirectory) -> tuple[Any, ...]:
    """What must be the same in two runs: rows without clocks, episodes, arrays of the last checkpoint."""
    rows = [{name: x for name, x in row.items() if not name.startswith("time/")} for row in run.metrics()]
    with np.load(run.last) as file:
        arrays = {name: file[name].tobytes() for name in sorted(file.files) if name != "meta"}
    return json.dumps(rows), run.episodes_path.read_text("utf-8"), arrays


def overhead() -> dict[str, Any]:
    """Median seconds of an iteration of four seeds in two workers, through pipes and through actors."""
    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    found: dict[str, Any] = {}
    for environment, steps in LENGTHS.items():
        taken: dict[str, list[float]] = {"pipes": [], "actors": []}
        for _ in range(3):  # in turn, so that both meet the same load
            for name, where in (("pipes", {}), ("actors", {"cluster": AUTO})):
                taken[name].append(median_iteration(environment, steps, where))
        best = {name: min(seconds) for name, seconds in taken.items()}
        found[environment] = {**best, "overhead": best["actors"] / best["pipes"] - 1}
        print(environment, found[environment], flush=True)
    return found


def median_iteration(environment: str, steps: int, where: dict[str, Any]) -> float:
    """The median seconds between two rows of a run's first seed."""
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"seeds": 4, "steps": steps, "workers": 2, "num_envs": 8, "rollout_steps": 128}
        run = upslope.train(environment, folder=folder, quiet=True, preset=False, **options, **where)
        elapsed = [row["time/elapsed"] for row in run.metrics() if row["seed"] == run.seeds[0]]
    return float(np.median(np.diff(elapsed)))


def main() -> None:
    """Measure what is asked for, and store it beside what was stored before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", "overhead"])
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = faults(arguments.count) if arguments.what == "faults" else overhead()
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "ray": ray.__version__}
    RESULTS.write_text(json.dumps(stored | {arguments.what: found, "machine": machine}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
