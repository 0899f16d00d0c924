"""How well do runs on a Ray cluster survive faults, what does the transport cost, and how does it scale?

    python benchmarks/cluster.py faults --times 20    # each fault 20 times, on a cluster of three nodes; needs root
    python benchmarks/cluster.py faults --only node   # only faults whose name contains this word; keep other results
    python benchmarks/cluster.py overhead             # seconds per iteration, alternating between pipes and actors
    python benchmarks/cluster.py lockstep             # an environment with 20 ms per step in 1 to 16 actors
    python benchmarks/cluster.py sweep                # 256 short trials: how busy the cores are
    python benchmarks/cluster.py seeds                # up to 1,000 seeds in one run: memory, files, report, compare
    python benchmarks/cluster.py table                # write the figures into docs/reliability.md and docs/cluster.md

Stores benchmarks/results/cluster.json. Needs the extra `ray`. The nodes are raylets on this machine. Faults strike
during randomly chosen chunks (the choice is seeded). Every row, episode and array of the run is then compared with
those of a run without faults (benchmarks/cluster_faults.py). For network faults, see benchmarks/cluster_hosts.py.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
from cluster_world import SECONDS
from pages import fill

import upslope
from upslope.engines.actors import ActorChannel
from upslope.engines.cluster import require_ray
from upslope.engines.workers import WorkersEngine
from upslope.runs.directory import versions

HERE = Path(__file__).parent
RESULTS, DOCS = HERE / "results" / "cluster.json", HERE.parent / "docs"
AUTO = upslope.Placement("auto")
ROUNDS = 5
TASKS = {"CartPole-v1": 40_960, "HalfCheetah-v5": 16_384}
"""Environment in which the overhead is measured → the number of steps per seed."""
WORKERS = (1, 2, 4, 8, 16)


def overhead(only: str = "") -> dict[str, Any]:
    """Measure an iteration of two seeds in two workers, alternating between pipes and actors: the median wall-clock
    time, the main process's CPU time, and the sizes of a request and an answer in bytes."""
    ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    found: dict[str, Any] = stored().get("overhead", {})
    kinds: list[tuple[str, dict[str, Any]]] = [("pipes", {}), ("actors", {"cluster": AUTO})]
    for environment, steps in TASKS.items():
        if only not in environment:
            continue
        rounds = []
        for number in range(ROUNDS):
            one: dict[str, float] = {}
            for name, where in kinds[:: (-1) ** number]:
                one |= {f"{name}{word}": x for word, x in iteration_of(environment, steps, where).items()}
            rounds.append(one | {"overhead": one["actors"] / one["pipes"] - 1})
            print(environment, rounds[-1], flush=True)
        middle = {name: median(one[name] for one in rounds) for name in rounds[0]}
        found[environment] = {"median": middle, "rounds": rounds}
    return found


def iteration_of(environment: str, steps: int, where: dict[str, Any]) -> dict[str, float]:
    """Measure one iteration: its duration (the median time between two rows of the first seed), the main process's CPU
    time, and the message sizes."""
    clock: list[float] = []
    sizes: dict[str, list[int]] = {"asked": [], "answered": []}
    advance, submit, new_ones = WorkersEngine.advance, ActorChannel.submit, ActorChannel.new_ones

    def timed(engine: WorkersEngine, *arguments: Any) -> Any:
        clock.append(time.process_time())
        return advance(engine, *arguments)

    def sent(channel: ActorChannel, call: Any) -> None:
        sizes["asked"].append(len(call.request))
        submit(channel, call)

    def received(channel: ActorChannel, reply: bytes) -> Any:
        sizes["answered"].append(len(reply))
        return new_ones(channel, reply)

    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"seeds": 2, "steps": steps, "workers": 2, "num_envs": 8, "rollout_steps": 128}
        WorkersEngine.advance, ActorChannel.submit, ActorChannel.new_ones = timed, sent, received
        try:
            run = upslope.train(environment, folder=folder, quiet=True, preset=False, **options, **where)
        finally:
            WorkersEngine.advance, ActorChannel.submit, ActorChannel.new_ones = advance, submit, new_ones
        elapsed = [row["time/elapsed"] for row in run.metrics() if row["seed"] == run.seeds[0]]
    found = {"": float(np.median(np.diff(elapsed))), " main process": float(np.median(np.diff(clock)))}
    return found | {f" bytes {name}": float(median(found)) for name, found in sizes.items() if found}


def lockstep() -> dict[str, Any]:
    """Measure the seconds per step of 16 sleeping environments in 1 to 16 actors, and the duration of a call to
    actors."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    ray.init(address="local", num_cpus=16, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    found: dict[str, Any] = {"seconds a step of the environment": SECONDS, "calls": calls()}
    for workers in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {
                "num_envs": 16,
                "rollout_steps": 32,
                "steps": 16 * 32 * (2 if workers == 1 else 5),
            }
            run = upslope.train(
                "cluster_world:Sleeping",
                folder=folder,
                quiet=True,
                preset=False,
                workers=workers,
                cluster=AUTO,
                **options,
            )
            elapsed = [row["time/elapsed"] for row in run.metrics()]
        found[f"{workers} workers"] = float(np.median(np.diff(elapsed))) / 32
        print(workers, found[f"{workers} workers"], flush=True)
    found["speedup of 16"] = found["1 workers"] / found["16 workers"]
    return found


def calls() -> dict[str, Any]:
    """Measure the median duration, in milliseconds, of simultaneous calls to 1 to 16 actors that only return their
    message, for several message sizes."""
    found: dict[str, Any] = {}
    kind = ray.remote(num_cpus=1)(Echo)
    for count in WORKERS:
        actors = [kind.remote() for _ in range(count)]
        ray.get([actor.echo.remote(b"") for actor in actors])
        for size in (100, 10_000, 90_000, 300_000, 1_000_000):
            message, taken = bytes(size), []
            for _ in range(60):
                began = time.perf_counter()
                for reference in [actor.echo.remote(message) for actor in actors]:
                    ray.get(reference)
                taken.append(time.perf_counter() - began)
            found[f"{count} × {size}"] = round(1000 * median(taken), 3)
        for actor in actors:
            ray.kill(actor)
    print(found, flush=True)
    return found


class Echo:
    """An actor that returns the message it receives."""

    def echo(self, message: bytes) -> bytes:
        """Return the message."""
        return message


SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "entropy_coefficient": {"low": 1e-4, "high": 1e-1, "log": True},
}


def sweep() -> dict[str, Any]:
    """Measure how busy the cores are during a sweep of 256 short trials of a compiled environment."""
    ray.init(
        address="local", num_cpus=os.cpu_count(), log_to_driver=False, logging_level="ERROR", include_dashboard=False
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"trials": 256, "seeds": 1, "steps": 100_000, "space": SPACE, "sampler": "random"}
        options |= {"pruner": "none", "fresh_seeds": 0, "folder": folder, "quiet": True, "cluster": AUTO, "name": "s"}
        watch = Busy()
        began, own = time.perf_counter(), time.process_time()
        result = upslope.sweep("jax:CartPole-v1", "ppo", **options)
        found["seconds"] = round(time.perf_counter() - began, 1)
        found["main process seconds a trial"] = round((time.process_time() - own) / options["trials"], 4)
        found |= watch.shares() | {"trials": len(result.trials), "states": sorted({t.state for t in result.trials})}
    print(found, flush=True)
    return found


class Busy:
    """Watches how busy the cores are, using the system's counters."""

    def __init__(self) -> None:
        self.samples: list[list[tuple[int, int]]] = []
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Read the busy time and the total time of each core once per second."""
        while not self.is_over.wait(1.0):
            lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
            numbers = [[int(x) for x in line[1:]] for line in lines if line[0] != "cpu"]
            self.samples.append([(sum(x) - x[3] - x[4], sum(x)) for x in numbers])

    def shares(self) -> dict[str, Any]:
        """Return the share of time for which each core was busy, overall and over the middle 90 % of the sweep."""
        self.is_over.set()
        self.thread.join()

        def between(first: int, last: int) -> list[float]:
            pairs = zip(self.samples[first], self.samples[last], strict=True)
            return [round((b[0] - a[0]) / (b[1] - a[1]), 3) for a, b in pairs]

        edge = len(self.samples) // 20
        return {"busy": between(0, -1), "busy in the middle 90 %": between(edge, -1 - edge)}


MANY = (10, 100, 1000)


def seeds() -> dict[str, Any]:
    """Measure runs of a compiled environment with many seeds: their memory and files, and the duration of `report` and
    `compare`."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in MANY:
            settings = f"--seeds {count} --steps 8192 --no-preset --hidden-sizes 16"
            train = f"train jax:CartPole-v1 {settings} --folder {folder} --quiet --name"
            run = Path(folder) / f"a{count}"
            one = {"train": measured(f"{train} a{count}")}
            measured(f"{train} b{count} --learning-rate 0.001")
            one["report"] = measured(f"report {run}")
            one["compare"] = measured(f"compare {run} {folder}/b{count}")
            files = [path for path in run.rglob("*") if path.is_file()]
            one |= {"files": len(files), "megabytes": round(sum(p.stat().st_size for p in files) / 2**20, 2)}
            found[str(count)] = one
            print(count, one, flush=True)
    return found


def measured(command: str) -> dict[str, float]:
    """Run an upslope command, and return its duration in seconds and its peak memory."""
    code = "import resource, sys; from upslope.cli.main import main\ntry:\n    main()\nfinally:\n" + (
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    peak = int(done.stderr.split()[-1]) / 2**10
    return {"seconds": round(time.perf_counter() - began, 1), "peak megabytes": round(peak)}


def fault_rows(found: dict[str, Any]) -> list[str]:
    """Format the results of the faults as a table."""
    rows = ["| fault, on a cluster | times | runs | runs with unchanged results | lost rows |"]
    rows.append("|---|---:|---:|---:|---:|")
    keys = ("faults", "runs", "runs with unchanged results", "lost rows")
    for name, one in (found.get("faults", {}) | found.get("hosts", {})).items():
        rows.append(f"| {name} | " + " | ".join(f"{one[key]:,}" for key in keys) + " |")
    return [*rows, "", measured_with(found)]


def measured_with(found: dict[str, Any]) -> str:
    """Describe the machine on which the figures were measured."""
    return "Measured with " + ", ".join(f"{name} {value}" for name, value in found["machine"].items()) + "."


def figure_rows(found: dict[str, Any]) -> list[str]:
    """Format all other figures as a table."""
    rows = ["| figure | measured |", "|---|---:|"]
    for name, one in found.get("overhead", {}).items():
        middle, each = one["median"], [100 * part["overhead"] for part in one["rounds"]]
        spread = f"rounds {min(each):+.0f} to {max(each):+.0f} %"
        rows.append(
            f"| an iteration of {name}, 8 environments × 128 steps, two seeds in two workers: pipes, actors "
            f"| {1000 * middle['pipes']:.1f} ms, {1000 * middle['actors']:.1f} ms "
            f"({100 * middle['overhead']:+.1f} %; {spread}) |"
        )
    if one := found.get("lockstep"):
        rows.append(
            f"| 16 environments with 20 ms per step: a step in 1 actor, in 16 | {1000 * one['1 workers']:.0f} ms, "
            f"{1000 * one['16 workers']:.1f} ms ({one['speedup of 16']:.1f} ×) |"
        )
    if one := found.get("sweep"):
        shares = ", ".join(f"{100 * x:.0f} %" for x in one["busy"])
        own = one["main process seconds a trial"] * one["trials"] / (one["seconds"] * found["machine"]["cores"])
        took = f"{one['trials']} trials of a compiled environment in {one['seconds']:.0f} s"
        words = f"{took}: busy share of each core, by any process; share of the main process"
        rows.append(f"| {words} | {shares}; {100 * own:.0f} % |")
    for count, one in found.get("seeds", {}).items():
        rows.append(
            f"| {int(count):,} seeds in one run: peak memory of `train`, files, `report`, `compare` | "
            f"{one['train']['peak megabytes']:,} MB, {one['files']} of {one['megabytes']:.1f} MB, "
            f"{one['report']['seconds']:.0f} s, {one['compare']['seconds']:.0f} s |"
        )
    return [*rows, "", measured_with(found)]


def stored() -> dict[str, Any]:
    """Read the stored results."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def store(what: str, found: dict[str, Any]) -> None:
    """Add results to the stored ones."""
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "ray": ray.__version__}
    machine |= {name: value for name, value in versions().items() if name in ("upslope", "jax", "numpy", "gymnasium")}
    RESULTS.write_text(json.dumps(stored() | {what: found, "machine": machine}, indent=1) + "\n", "utf-8")


def faults(times: int, only: str) -> None:
    """Inject the chosen faults, and add each result to the stored ones."""
    from cluster_faults import all_faults

    def tell(name: str, one: dict[str, Any]) -> None:
        print(name, one, flush=True)
        store("faults", stored().get("faults", {}) | {name: one})

    with tempfile.TemporaryDirectory() as folder:
        all_faults(times, only, Path(folder), tell)


def main() -> None:
    """Measure the requested part, and add it to the stored results."""
    measures = {"overhead": overhead, "lockstep": lockstep, "sweep": sweep, "seeds": seeds}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["faults", *measures, "table"])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--only", default="", help="part of the name of a fault or an environment")
    arguments = parser.parse_args()
    require_ray()  # applies the settings that upslope uses for the clusters it starts
    if arguments.what == "table":
        fill(DOCS / "reliability.md", "cluster", "\n".join(fault_rows(stored())))
        fill(DOCS / "cluster.md", "figures", "\n".join(figure_rows(stored())))
    elif arguments.what == "faults":
        faults(arguments.times, arguments.only)
    else:
        more = {"only": arguments.only} if arguments.what == "overhead" else {}
        store(arguments.what, measures[arguments.what](**more))


if __name__ == "__main__":
    main()
