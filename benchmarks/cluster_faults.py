"""Inject faults into runs on a Ray cluster, and check the runs afterwards. Used by `benchmarks/cluster.py faults`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

import upslope
from upslope.engines import transport
from upslope.engines.actors import ActorChannel
from upslope.engines.workers import WorkersEngine
from upslope.runs import loop
from upslope.runs.directory import RunDirectory

SETTINGS: dict[str, Any] = {"seeds": 3, "steps": 4_000, "preset": False, "num_envs": 2, "rollout_steps": 32}
CHUNKS = SETTINGS["steps"] // (SETTINGS["num_envs"] * SETTINGS["rollout_steps"])
STRIKES = 10
"""Number of faults per run."""
HEALTH = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_timeout_ms": 3000}
"""Settings that make Ray detect a lost node within a few seconds rather than half a minute."""
CHECKPOINT_SECONDS = 0.2
AUTO = upslope.Placement("auto")
COMMAND = f"""
import sys
from upslope.engines import actors
from upslope.runs import loop
loop.CHECKPOINT_SECONDS = {CHECKPOINT_SECONDS}
again = actors.ActorChannel.again
def counted(self, *arguments):
    print("a call is repeated", file=sys.stderr, flush=True)
    return again(self, *arguments)
actors.ActorChannel.again = counted
from upslope.cli.main import main
main()
"""
"""Code that runs upslope's command line with frequent checkpoints and prints a line for each repeated call."""


@dataclass
class Place:
    """The cluster into which faults are injected, and the folders that Ray and the runs use."""

    nodes: Cluster
    ray_folder: Path
    """A separate small file system, where Ray keeps sockets, logs and spilled objects."""
    folder: Path
    """A separate small file system for the runs."""
    draw: np.random.Generator

    def even(self, count: int = 3) -> None:
        """Add or remove nodes until the cluster has `count` nodes."""
        others = list(self.nodes.worker_nodes)
        for node in others[count - 1 :]:
            self.nodes.remove_node(node, allow_graceful=False)
        for _ in range(count - 1 - len(others)):
            self.nodes.add_node(num_cpus=1)

    def process(self, engine: WorkersEngine) -> int:
        """Return the process id of a randomly chosen worker."""
        channel = engine.workers[self.draw.integers(len(engine.workers))].channel
        assert isinstance(channel, ActorChannel)
        return int(channel.place.rpartition(" ")[2])

    def signal(self, engine: WorkersEngine, number: int, seconds: float = 0.005) -> int:
        """Send a signal to a randomly chosen worker process after a short delay, while it is working."""
        process = self.process(engine)
        threading.Timer(seconds, os.kill, (process, number)).start()
        return process


Strike = Callable[[Place, WorkersEngine], None]


def kill_worker(place: Place, engine: WorkersEngine) -> None:
    """Kill a worker process with SIGKILL while it is working."""
    place.signal(engine, signal.SIGKILL)


def lose_or_add_node(place: Place, engine: WorkersEngine) -> None:
    """Remove a node if there are three; otherwise add one and make the engine look for it immediately."""
    if len(place.nodes.worker_nodes) == 2:
        node = sorted(place.nodes.worker_nodes, key=str)[place.draw.integers(2)]
        place.nodes.remove_node(node, allow_graceful=False)
    else:
        place.nodes.add_node(num_cpus=1)
        engine.looked = -1e9


def slow_worker(place: Place, engine: WorkersEngine) -> None:
    """Suspend a worker process for two seconds."""
    process = place.signal(engine, signal.SIGSTOP)
    threading.Timer(2.0, os.kill, (process, signal.SIGCONT)).start()


def hanging_worker(place: Place, engine: WorkersEngine) -> None:
    """Suspend a worker process permanently. upslope reports this after two seconds instead of a minute."""
    place.signal(engine, signal.SIGSTOP)
    transport.PATIENCE, os.environ[transport.LIMIT] = 2.0, "4"


def full_disk(place: Place, engine: WorkersEngine) -> None:
    """Fill the disk to which the run is written."""
    fill_disk(place.folder)


def full_ray_folder(place: Place, engine: WorkersEngine) -> None:
    """Fill the disk that contains Ray's own folder, for two seconds."""
    fill_disk(place.ray_folder)
    threading.Timer(2.0, (place.ray_folder / "filler").unlink, kwargs={"missing_ok": True}).start()


def fill_disk(folder: Path) -> None:
    """Fill a file system."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            return


FAULTS: dict[str, tuple[Strike, int]] = {
    "a worker killed in an iteration": (kill_worker, 1),
    "a node lost; another one added": (lose_or_add_node, 2),
    "a worker stopped for two seconds": (slow_worker, 1),
    "a worker that hangs, resumed": (hanging_worker, 1),
    "a full disk under the run, resumed": (full_disk, 1),
    "a full disk under Ray's folder": (full_ray_folder, 1),
}
"""Name → the function that causes the fault, and how many calls to it count as one fault. Losing a node takes two: one
call removes a node, and the next adds another."""
LOSSES = {"num_failures": 8, "req_failure_prob": 4, "resp_failure_prob": 4, "in_flight_failure_prob": 4}
"""The number of calls that Ray drops in a run, followed by three percentages: lost calls, lost answers, and answers
lost while the call is still in progress."""
KILLED, UNAVAILABLE = "the command killed, resumed", "a call or its answer lost on the way"


@contextmanager
def place_of(folder: Path, seed: int) -> Iterator[Place]:
    """Start a cluster of three nodes with one CPU each. If run as root, mount small file systems for it."""
    spots = folder / "ray", folder / "runs"
    for spot, size in zip(spots, ("400m", "24m"), strict=True):
        spot.mkdir(parents=True, exist_ok=True)
        if can_mount():
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(spot)], check=True)
    options = {"num_cpus": 1, "temp_dir": str(spots[0]), "_system_config": HEALTH}
    nodes = Cluster(initialize_head=True, head_node_args=options)
    try:
        ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
        ray._private.worker._worker_logs_enabled = False
        place = Place(nodes, *spots, np.random.default_rng(seed))
        place.even()
        yield place
    finally:
        ray.shutdown()
        nodes.shutdown()
        for spot in spots if can_mount() else []:
            subprocess.run(["umount", "-l", str(spot)], check=False)


def can_mount() -> bool:
    """Whether this process may mount file systems."""
    return os.geteuid() == 0


def strike_often(name: str, times: int, place: Place, whole: tuple[Any, ...]) -> dict[str, Any]:
    """Inject a fault this many times, and count the runs that were unaffected and the rows that were lost."""
    strike, together = FAULTS[name]
    tally: dict[str, Any] = {"faults": 0, "runs": 0, "runs with unchanged results": 0, "lost rows": 0}
    words: set[str] = set()
    began = time.perf_counter()
    while tally["faults"] < times:
        place.even()
        count = min(STRIKES, times - tally["faults"])
        run, struck, said = struck_run(name, strike, count * together, place)
        count_run(tally, run, struck // together, whole)
        words |= said
    return tally | {"seconds": round(time.perf_counter() - began), "said": sorted(words)[:3]}


def count_run(tally: dict[str, Any], run: RunDirectory, struck: int, whole: tuple[Any, ...]) -> None:
    """Add a run and the rows that it lost to the tally, and delete the run."""
    found = contents(run)
    tally["faults"] += struck
    tally["runs"] += 1
    tally["runs with unchanged results"] += found == whole
    tally["lost rows"] += len(set(whole[0] + whole[1]) - set(found[0] + found[1]))
    shutil.rmtree(run.path)


def struck_run(name: str, strike: Strike, count: int, place: Place) -> tuple[RunDirectory, int, set[str]]:
    """Train a run and inject this number of faults during randomly chosen chunks. Resume the run whenever it stops."""
    chunks = set(place.draw.choice(np.arange(2, CHUNKS - 2), count, replace=False).tolist())
    said: set[str] = set()
    struck = 0
    advance, seen = WorkersEngine.advance, iter(range(10**6))

    def advance_or_strike(engine: WorkersEngine, *arguments: Any) -> Any:
        nonlocal struck
        if next(seen) in chunks:
            struck += 1
            strike(place, engine)
        return advance(engine, *arguments)

    path = place.folder / name.replace(" ", "-").replace(",", "").replace(";", "")
    WorkersEngine.advance, loop.CHECKPOINT_SECONDS = advance_or_strike, CHECKPOINT_SECONDS
    try:
        while True:
            try:
                if path.exists():
                    upslope.resume(path, quiet=True, cluster=AUTO)
                else:
                    upslope.train(
                        "CartPole-v1", folder=place.folder, name=path.name, quiet=True, cluster=AUTO, **SETTINGS
                    )
                return RunDirectory(path), struck, said
            except upslope.UpslopeError as error:
                said.add(str(error))
                transport.PATIENCE = 60.0
                os.environ.pop(transport.LIMIT, None)
                (place.folder / "filler").unlink(missing_ok=True)
    finally:
        WorkersEngine.advance = advance


def killed_often(times: int, place: Place, whole: tuple[Any, ...]) -> dict[str, Any]:
    """Kill the training command with SIGKILL at random moments, and resume its run each time."""
    tally: dict[str, Any] = {"faults": 0, "runs": 0, "runs with unchanged results": 0, "lost rows": 0}
    began = time.perf_counter()
    while tally["faults"] < times:
        place.even()
        run, struck = place.folder / "killed", 0
        while True:
            process = command(run, place, place.folder.parent / "killed.log")
            if struck == min(STRIKES, times - tally["faults"]):
                break
            before = size_of(run)
            until = time.monotonic() + 90
            while size_of(run) <= before and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            time.sleep(place.draw.uniform(0, 1.0))
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            struck += 1
        if process.wait(300) != 0:
            raise SystemExit((place.folder.parent / "killed.log").read_text()[-2000:])
        count_run(tally, RunDirectory(run), struck, whole)
    return tally | {"seconds": round(time.perf_counter() - began)}


def size_of(run: Path) -> int:
    """Return the size of a run's metrics file."""
    path = run / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def unavailable_often(times: int, place: Place, whole: tuple[Any, ...]) -> dict[str, Any]:
    """Make Ray drop calls to workers, or the workers' answers."""
    tally: dict[str, Any] = {"faults": 0, "runs": 0, "runs with unchanged results": 0, "lost rows": 0}
    began = time.perf_counter()
    while tally["faults"] < times:
        place.even()
        log = place.folder.parent / "unavailable.log"
        log.unlink(missing_ok=True)
        losing = {"RAY_testing_rpc_failure": json.dumps({"CoreWorkerService.grpc_client.PushTask": LOSSES})}
        losing |= {"RAY_actor_scheduling_queue_max_reorder_wait_seconds": "0"}
        if command(place.folder / "unavailable", place, log, losing).wait(300) != 0:
            raise SystemExit(log.read_text()[-2000:])
        struck = log.read_text().count("a call is repeated")
        if struck == 0:
            raise SystemExit("Ray lost no call.")
        count_run(tally, RunDirectory(place.folder / "unavailable"), struck, whole)
    return tally | {"seconds": round(time.perf_counter() - began)}


def command(run: Path, place: Place, log: Path, variables: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Train or resume through the command line."""
    words = ["train", "CartPole-v1", "--no-preset", "--folder", str(run.parent), "--name", run.name]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items() if name != "preset"]
    words = ["resume", str(run)] if run.exists() else words
    words += ["--cluster", place.nodes.address, "--quiet"]
    with log.open("ab") as output:
        environment = os.environ | (variables or {})
        return subprocess.Popen([sys.executable, "-c", COMMAND, *words], stdout=output, stderr=output, env=environment)


def contents(run: RunDirectory) -> tuple[Any, ...]:
    """Return everything that must be equal in two runs: rows without timing columns, episodes, and the arrays of the
    last checkpoint."""
    rows = [{name: x for name, x in row.items() if not name.startswith("time/")} for row in run.metrics()]
    with np.load(run.last) as file:
        arrays = {name: file[name].tobytes() for name in sorted(file.files) if name != "meta"}
    return [json.dumps(row) for row in rows], run.episodes_path.read_text("utf-8").splitlines(), arrays


def undisturbed(place: Place) -> tuple[Any, ...]:
    """Train the reference run, without faults and without a cluster."""
    run = upslope.train("CartPole-v1", folder=place.folder, name="whole", quiet=True, workers=1, **SETTINGS)
    return contents(RunDirectory(run.path))


def all_faults(times: int, only: str, folder: Path, tell: Callable[[str, dict[str, Any]], None]) -> None:
    """Inject each fault whose name contains `only`, and report the results."""
    if not can_mount():
        raise SystemExit("Full disks are simulated by small file systems, which only root can mount.")
    with place_of(folder, 0) as place:
        whole = undisturbed(place)
        for name in FAULTS:
            if only in name:
                tell(name, strike_often(name, times, place, whole))
        if only in KILLED:
            tell(KILLED, killed_often(times, place, whole))
        if only in UNAVAILABLE:
            tell(UNAVAILABLE, unavailable_often(times, place, whole))
