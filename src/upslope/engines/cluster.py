"""A Ray cluster: its nodes, their resources, and the connection to it (extra `ray`). `actors.py` contains its workers.

Anyone who can reach a Ray cluster can run code on it. A cluster that upslope starts requires a token, and a cluster
that it joins should require one too. Only the main process writes files.
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from upslope.core.messages import counted
from upslope.core.numbers import number
from upslope.core.reading import brief
from upslope.engines.actors import INLINE, ActorChannel, end_actor, new_actor
from upslope.engines.base import Placement
from upslope.engines.nodes import difference, facts, install_words, modules_of
from upslope.engines.notices import Notices
from upslope.engines.transport import Worker
from upslope.environments.base import AnyEnvironment
from upslope.errors import UpslopeError

LOOK_SECONDS = 60.0
"""Seconds within which a node must report its versions."""
RELEASE_SECONDS, LOOK_AGAIN = 3.0, 0.25
"""Number of seconds within which closed workers must release their processors, and number of seconds between the checks
of whether they have done so."""
AUTO = "auto"


def require_ray() -> Any:
    """Import Ray, without its usage statistics.

    Raises:
        UpslopeError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's next version does this, and this one warns
    os.environ.setdefault("RAY_worker_niceness", "0")  # applies to a cluster started here; Ray's default is 15
    for name, value in INLINE.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        words = '--cluster needs Ray, which is not installed: pip install "upslope[ray]"'
        raise UpslopeError(words) from error
    return ray


class Cluster:
    """A connection to a cluster, and the resources of each worker."""

    def __init__(self, ray: Any, placement: Placement):
        self.ray, self.placement = ray, placement
        self.compared: set[tuple[str, str]] = set()
        """Checks that nodes have passed, as (node, module); the module is empty for the general comparison."""
        self.refused: set[str] = set()
        """The reasons why nodes that joined later are not used."""
        self.idle: list[Any] = []
        """Idle actors, which have closed their environments and can serve the next workers."""

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive and have processors for workers."""
        return [n for n in self.ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]

    def require(self, part: Any, environment: AnyEnvironment) -> None:
        """Check that the versions and processors of all nodes match this machine's, and that nodes have the modules
        needed to unpickle the data sent to them.

        Raises:
            UpslopeError: a node differs or lacks a module; the message names the node.
        """
        mine, modules = facts([]), modules_of(part, environment)

        def asks(node: dict[str, Any]) -> set[tuple[str, str]]:
            return {(node["NodeID"], name) for name in ("", *modules)}

        new = [node for node in self.nodes() if not asks(node) <= self.compared]
        asked = [(node, self.ask_node(node, modules)) for node in new]
        for node, reference in asked:
            theirs = self.answer_of_node(node, reference)
            if theirs is None:
                continue
            if problem := difference(mine, theirs, self.placement.mixed):
                raise UpslopeError(f"Node {node['NodeManagerAddress']} of the cluster {problem}")
            self.compared |= asks(node)

    def answer_of_node(self, node: dict[str, Any], reference: Any) -> dict[str, Any] | None:
        """Return a node's facts, or None if it has left the cluster in the meantime."""
        try:
            return self.ray.get(reference, timeout=LOOK_SECONDS)
        except Exception as error:  # upslope may be missing on the node or too old to respond
            until = time.monotonic() + LOOK_SECONDS
            while not isinstance(error, self.ray.exceptions.RayTaskError) and time.monotonic() < until:
                if node["NodeID"] not in {one["NodeID"] for one in self.nodes()}:
                    return None
                time.sleep(LOOK_AGAIN)
            raise UpslopeError(
                f"Node {node['NodeManagerAddress']} of the cluster cannot run upslope {version('upslope')}: "
                f"{brief(error):.300}. On that node, run: {install_words()}"
            ) from error

    def ask_node(self, node: dict[str, Any], modules: list[str]) -> Any:
        """Have a node report its facts."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        return self.ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(facts).remote(modules)

    def capacity(self) -> int:
        """Return how many workers, at least one, fit into the free processors and accelerators.

        Raises:
            UpslopeError: no node is large enough for a worker.
        """
        cpus, gpus = self.placement.worker_cpus, self.placement.worker_gpus
        wholes = [fits(node["Resources"], cpus, gpus) for node in self.nodes()]
        if not any(wholes):
            raise UpslopeError(
                f"No node of the cluster has {self.worker_words()} for a worker: the nodes have "
                f"{', '.join(resource_words(node['Resources']) for node in self.nodes()) or 'no processors'}. Lower "
                "--worker-cpus or --worker-gpus, or add a node."
            )
        until = time.monotonic() + RELEASE_SECONDS
        while (free := self.free() + len(self.idle)) < sum(wholes) and time.monotonic() < until:
            time.sleep(LOOK_AGAIN)
        return max(1, min(sum(wholes), free))

    def free(self) -> int:
        """Return the number of additional workers for which the cluster has room now."""
        return fits(self.ray.available_resources(), self.placement.worker_cpus, self.placement.worker_gpus)

    def room(self, part: Any, environment: AnyEnvironment, say: Callable[[str], None]) -> int:
        """Return the number of additional workers for which the cluster has room.

        It is 0 if the cluster contains a node that `require` would refuse, which is reported once."""
        free = self.free() + len(self.idle)
        if free < 1:
            return 0
        try:
            self.require(part, environment)
        except UpslopeError as error:
            if str(error) not in self.refused:
                self.refused.add(str(error))
                say(f"{error} The run continues without it.")
            return 0
        return free

    def worker_words(self) -> str:
        """Describe the resources of a worker, e.g. `1 CPU`."""
        return resource_words({"CPU": self.placement.worker_cpus, "GPU": self.placement.worker_gpus})

    def words(self, workers: int) -> str:
        """Return the line that shows where training runs and which resources it uses."""
        nodes = self.nodes()
        cpus = sum(node["Resources"].get("CPU", 0) for node in nodes)
        return (
            f"cluster {self.ray.get_runtime_context().gcs_address} · {counted(len(nodes), 'node')}, "
            f"{number(cpus)} CPUs · "
            f"{counted(workers, 'worker')} with {self.worker_words()} each (--worker-cpus, --worker-gpus)"
        )

    def start_worker(self, module: str, index: int, share: str, notices: Notices) -> Worker:
        """Start a worker in an actor, either an idle one or a new one; see `StartWorker`."""
        try:
            actor = self.idle.pop()
        except IndexError:
            actor = new_actor(self.ray, self.placement)
        return Worker(ActorChannel(self.ray, actor, module, self.idle.append), index, share, notices)

    def release(self) -> None:
        """End the idle actors to free their processors for others."""
        while self.idle:
            end_actor(self.ray, self.idle.pop())


connected: dict[tuple[Any, ...], Cluster] = {}
"""The clusters of this process, by connection and placement."""


def connect(placement: Placement) -> Cluster:
    """Connect to the cluster of a placement, or start one on this machine.

    Raises:
        UpslopeError: Ray is missing, no cluster responds, or this process is connected to another cluster.
    """
    ray = require_ray()
    if not ray.is_initialized():
        begin(ray, placement)
        begun[connection(ray)] = placement
    here = connection(ray)
    first = begun.get(here, Placement(here[0]))
    if placement.address not in (AUTO, first.address, here[0]):
        raise UpslopeError(
            f"This process is already connected to the cluster {here[0]}, not to {placement.address}. Call "
            "ray.shutdown() first, or use another process."
        )
    if not set(placement.modules) <= set(first.modules):
        raise UpslopeError(
            "This process is already connected to the cluster, and modules are sent when it connects. Name them in "
            "the first call, or call ray.shutdown() before this one."
        )
    return connected.setdefault((*here, placement), Cluster(ray, placement))


begun: dict[tuple[str, str], Placement] = {}
"""The placements with which this process opened its connections."""


def connection(ray: Any) -> tuple[str, str]:
    """Return the address of the cluster, and the name of this process's connection to it."""
    context = ray.get_runtime_context()
    return context.gcs_address, context.get_job_id()


def release(placement: Placement | None) -> None:
    """End a placement's idle actors."""
    for (*_, other), cluster in connected.items():
        if other == placement:
            cluster.release()


def begin(ray: Any, placement: Placement) -> None:
    """Join a cluster.

    With `auto`, this is the cluster running on this machine, or else a new one that ends with this process."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if files := module_files(placement.modules):
        options["runtime_env"] = {"py_modules": [str(path) for path in files]}
    joining = {name: value for name, value in options.items() if name != "include_dashboard"}
    # A lost node's log would flood standard output, and upslope reports lost workers itself.
    with suppress(AttributeError):
        ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(address=placement.address, **joining)
    except ConnectionError as error:
        if placement.address != AUTO:
            raise UpslopeError(unreachable(placement.address, error)) from error
        ray.init(address="local", **options)
    except Exception as error:  # e.g. another version of Python or Ray, a missing token, or a malformed address
        raise UpslopeError(unreachable(placement.address, error)) from error


def unreachable(address: str, error: Exception) -> str:
    """Return the error message for a failed attempt to join a cluster."""
    return (
        f"The cluster {address} cannot be joined: {brief(error)}. Start one with `ray start --head` on one machine and "
        "`ray start --address HOST:6379` on the others, with the same versions of Python and Ray and the same token. "
        "--cluster auto uses the cluster running on this machine, or else this machine alone."
    )


def module_files(modules: Iterable[Path]) -> list[Path]:
    """Return the paths to send to the nodes for --py-module: whole packages and files, and the modules of a folder that
    is not a package.

    Raises:
        UpslopeError: a path does not exist, or contains no module.
    """
    found: list[Path] = []
    for path in modules:
        inside = (
            [p for p in sorted(path.iterdir()) if is_module(p)] if path.is_dir() and not is_module(path) else [path]
        )
        if not inside or not all(is_module(p) for p in inside):
            raise UpslopeError(f"--py-module {path} is not a Python module, package, or folder of modules.")
        found += inside
    return [path.resolve() for path in found]


def is_module(path: Path) -> bool:
    """Return whether a path is a module or a package."""
    return (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()


def fits(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """Return the number of workers that fit into the given resources."""
    counts = [int(resources.get("CPU", 0.0) // cpus)] if cpus else []
    return min([*counts, *([int(resources.get("GPU", 0.0) // gpus)] if gpus else [])])


def resource_words(resources: dict[str, float]) -> str:
    """Describe processors and accelerators."""
    gpus = resources.get("GPU", 0.0)
    return f"{number(resources.get('CPU', 0.0))} CPU" + (f" and {number(gpus)} GPU" if gpus else "")
