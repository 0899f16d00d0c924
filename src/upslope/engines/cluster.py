"""Workers as actors on a Ray cluster: all of Ray that upslope uses is here (extra `ray`).

An actor serves the same `Server` as a process of this machine does, and its channel carries the same messages, so what
trains does not know where its workers are. The main process alone writes files.

Every message of a worker has a number, and every call says which numbers the main process has seen. So a call whose
answer was lost on its way is repeated: the worker does nothing twice, and sends again what was not seen.

Anyone who can reach a Ray cluster can run code on it. A cluster that upslope starts requires a token, and one that it
joins should too. Messages are pickled, as those through pipes are, and pass only between the nodes of the cluster.
"""

import gc
import io
import os
import pickle
import platform
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from upslope.core.messages import counted, told
from upslope.core.numbers import number
from upslope.core.reading import brief
from upslope.engines.base import Placement
from upslope.engines.notices import Notices
from upslope.engines.transport import (
    CLOSING_SECONDS,
    Heartbeat,
    Message,
    Worker,
    WorkerLostError,
    answer_request,
)
from upslope.environments.base import AnyEnvironment, HostEnvironment
from upslope.errors import UpslopeError
from upslope.learning.devices import one_blas_thread, prepare, use_cores

PACKAGES = ("upslope", "jax", "jaxlib", "numpy", "gymnasium")
"""The packages whose versions decide a run's numbers, besides those of its environment."""
LOOK_SECONDS = 60.0
"""Seconds in which a node must tell its versions."""
RELEASE_SECONDS, LOOK_AGAIN = 3.0, 0.25
"""Seconds in which workers that were just closed give their processors back, and between two looks."""
UNREACHABLE_SECONDS = 60.0
"""Seconds after which a worker that Ray cannot reach counts as lost."""
VECTOR_FEATURES = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "neon")
"""How the names of processor features begin that change how XLA and Eigen round."""
INLINE = {"RAY_max_direct_call_object_size": str(4 << 20)}
"""Up to 4 MB, messages travel within calls and results. By default those of more than 100 kB, which a seed's state has,
take the way through the nodes' object stores, which takes some milliseconds."""
AUTO = "auto"


def require_ray() -> Any:
    """Import Ray, without its usage statistics.

    Raises:
        UpslopeError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray's next version does, and warns of
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here; Ray's own is 15
    for name, value in INLINE.items():
        os.environ.setdefault(name, value)
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        words = '--cluster needs Ray, which is not installed: pip install "upslope[ray]"'
        raise UpslopeError(words) from error
    return ray


class Cluster:
    """A connection to a cluster, and what a worker takes of it."""

    def __init__(self, ray: Any, placement: Placement):
        self.ray, self.placement = ray, placement
        self.compared: set[tuple[str, str]] = set()
        """Nodes that were compared, each with a module that it has; empty for none in particular."""
        self.refused: set[str] = set()
        """Why nodes that came later are not used."""
        self.idle: list[Any] = []
        """Actors that have closed their environments, for the next workers."""

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive and have processors for workers."""
        return [n for n in self.ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) > 0]

    def require(self, part: Any, environment: AnyEnvironment) -> None:
        """Compare versions and processors of all nodes with this machine's, and look for the modules of what they are
        sent.

        Raises:
            UpslopeError: a node differs, or lacks a module; it is named.
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
        """A node's facts; None if it is gone meanwhile."""
        try:
            return self.ray.get(reference, timeout=LOOK_SECONDS)
        except Exception as error:  # upslope may be missing there, or too old to know the question
            until = time.monotonic() + LOOK_SECONDS
            while not isinstance(error, self.ray.exceptions.RayTaskError) and time.monotonic() < until:
                if node["NodeID"] not in {one["NodeID"] for one in self.nodes()}:
                    return None
                time.sleep(LOOK_AGAIN)
            raise UpslopeError(
                f"Node {node['NodeManagerAddress']} of the cluster cannot run upslope {version('upslope')}: "
                f"{brief(error):.300}. Install there: {install_words()}"
            ) from error

    def ask_node(self, node: dict[str, Any], modules: list[str]) -> Any:
        """Have a node tell its facts."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        return self.ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(facts).remote(modules)

    def capacity(self) -> int:
        """How many workers the free processors and accelerators hold, at least one.

        Raises:
            UpslopeError: no node is large enough for a worker.
        """
        cpus, gpus = self.placement.worker_cpus, self.placement.worker_gpus
        wholes = [fits(node["Resources"], cpus, gpus) for node in self.nodes()]
        if not any(wholes):
            raise UpslopeError(
                f"No node of the cluster has {self.worker_words()} for a worker: they have "
                f"{', '.join(resource_words(node['Resources']) for node in self.nodes()) or 'no processors'}. Lower "
                "--worker-cpus or --worker-gpus, or add a node."
            )
        until = time.monotonic() + RELEASE_SECONDS
        while (free := self.free() + len(self.idle)) < sum(wholes) and time.monotonic() < until:
            time.sleep(LOOK_AGAIN)
        return max(1, min(sum(wholes), free))

    def free(self) -> int:
        """How many more workers the cluster holds now."""
        return fits(self.ray.available_resources(), self.placement.worker_cpus, self.placement.worker_gpus)

    def room(self, part: Any, environment: AnyEnvironment, say: Callable[[str], None]) -> int:
        """How many more workers the cluster holds now; none while it has a node that `require` would refuse, which is
        said once."""
        free = self.free() + len(self.idle)
        if free < 1:
            return 0
        try:
            self.require(part, environment)
        except UpslopeError as error:
            if str(error) not in self.refused:
                self.refused.add(str(error))
                say(f"{error} The run goes on without it.")
            return 0
        return free

    def worker_words(self) -> str:
        """What a worker takes, e.g. `1 CPU`."""
        return resource_words({"CPU": self.placement.worker_cpus, "GPU": self.placement.worker_gpus})

    def words(self, workers: int) -> str:
        """The line that says where training runs and what it takes."""
        nodes = self.nodes()
        cpus = sum(node["Resources"].get("CPU", 0) for node in nodes)
        return (
            f"cluster {self.ray.get_runtime_context().gcs_address} · {counted(len(nodes), 'node')}, "
            f"{number(cpus)} CPUs · "
            f"{counted(workers, 'worker')} with {self.worker_words()} each (--worker-cpus, --worker-gpus)"
        )

    def start_worker(self, module: str, index: int, share: str, notices: Notices) -> Worker:
        """Start a worker in an actor, one that has no work or a new one; see `StartWorker`."""
        with suppress(IndexError):
            return Worker(ActorChannel(self, self.idle.pop(), module), index, share, notices)
        return Worker(ActorChannel(self, self.new_actor(), module), index, share, notices)

    def new_actor(self) -> Any:
        """Start an actor, on a node that has room."""
        placement = self.placement
        # Without an accelerator of its own, an actor must not take one.
        variables = {"NPROC": "1"} | INLINE | ({} if placement.worker_gpus else {"JAX_PLATFORMS": "cpu"})
        kind = self.ray.remote(
            num_cpus=placement.worker_cpus,
            num_gpus=placement.worker_gpus,
            max_restarts=0,
            concurrency_groups={"signs": 1},
            runtime_env={"env_vars": variables},
            scheduling_strategy="SPREAD",
        )(Actor)
        return kind.remote(facts([]), placement.mixed, max(1, int(placement.worker_cpus)))

    def end(self, actor: Any) -> None:
        """End an actor at once."""
        with suppress(Exception):  # it may be gone already
            self.ray.kill(actor)

    def release(self) -> None:
        """End the actors that have no work, so that others can use their processors."""
        while self.idle:
            self.end(self.idle.pop())


Session = tuple[str, str]
"""A channel's own name, and the module whose `Server` it asks."""


@dataclass
class Call:
    """A call of an actor's `answer` whose result is awaited, with what is needed to repeat it."""

    number: int
    request: bytes
    result: Any = None
    """Ray's reference to the result."""


class ActorChannel:
    """Calls of an actor. A request is one call, whose result holds the notices before the answer; signs of life are
    asked for only while an answer takes long."""

    error = WorkerLostError

    def __init__(self, cluster: Cluster, actor: Any, module: str):
        self.cluster, self.ray, self.actor = cluster, cluster.ray, actor
        self.session = (uuid4().hex, module)
        self.calls: deque[Call] = deque()
        self.number, self.seen, self.unreachable = 0, 0, 0.0
        self.signs: Any = None
        self.messages: deque[Message] = deque()
        self.node, self.words, self.is_exiting = "", "", False

    @property
    def place(self) -> str:
        return self.node or "not placed yet"

    @property
    def waiting_for(self) -> str:
        if self.unreachable:
            return "it cannot be reached"
        return "it does not respond" if self.node else "it waits for a node with free processors, or starts"

    def send(self, request: tuple[str, tuple[Any, ...]]) -> None:
        self.number += 1
        self.calls.append(Call(self.number, pickle.dumps(request, protocol=5)))
        self.submit(self.calls[-1])

    def submit(self, call: Call) -> None:
        """Make a call, or make it again."""
        call.result = self.actor.answer.remote(self.session, call.number, call.request, self.seen)

    def receive(self, seconds: float) -> Message:
        while not self.messages:
            self.messages.extend(self.arrived(seconds))
        return self.messages.popleft()

    def arrived(self, seconds: float) -> list[Message]:
        """The messages of the next result to arrive.

        Raises:
            queue.Empty: none came within these seconds.
        """
        call = self.calls[0]
        result = call.result if self.signs is None else self.first_of(call.result, self.signs, seconds)
        try:
            reply = self.ray.get(result, timeout=seconds)
        except self.ray.exceptions.GetTimeoutError as error:
            if self.node:
                self.signs = self.actor.signs.options(concurrency_group="signs").remote(self.seen)
            raise queue.Empty from error
        except self.ray.exceptions.ActorUnavailableError as error:
            return self.again(call, seconds, error)
        except self.ray.exceptions.RayError as error:
            return self.gone(error)
        if result is self.signs:
            self.signs = None
        else:
            self.calls.popleft()
        self.unreachable = 0.0
        return self.new_ones(reply)

    def first_of(self, result: Any, signs: Any, seconds: float) -> Any:
        """The one that is there first, of the result of a call and signs of life."""
        ready, _ = self.ray.wait([result, signs], timeout=seconds)
        if not ready:
            raise queue.Empty
        return ready[0]

    def again(self, call: Call, seconds: float, error: Exception) -> list[Message]:
        """Repeat a call of a worker that cannot be reached now; after a minute it is lost."""
        self.unreachable += seconds
        if self.unreachable > UNREACHABLE_SECONDS:
            return self.gone(error)
        time.sleep(seconds)
        self.signs = None
        self.submit(call)
        raise queue.Empty

    def gone(self, error: Exception) -> list[Message]:
        """Note how the worker was lost."""
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        self.words = f"was lost: {first.rstrip('.'):.120}"
        return [("ended", None)]

    def new_ones(self, reply: bytes) -> list[Message]:
        """The messages of a reply that have not been seen."""
        self.node, numbered = pickle.loads(reply)
        found = [message for number, message in numbered if number > self.seen]
        self.seen = max([self.seen, *(number for number, _ in numbered)])
        return found

    def ending(self) -> str:
        return self.words

    def kill(self) -> None:
        self.cluster.end(self.actor)

    def interrupt(self) -> None:
        self.actor.interrupt.options(concurrency_group="signs").remote()

    def request_exit(self) -> None:
        if not self.is_exiting:
            self.is_exiting = True
            self.calls.append(Call(0, b"", self.actor.close.remote(self.seen)))

    def close(self) -> tuple[bool, list[Message]]:
        found = list(self.messages)
        until = time.monotonic() + CLOSING_SECONDS
        try:
            for call in self.calls:
                left = max(0.0, until - time.monotonic())
                found += self.new_ones(self.ray.get(call.result, timeout=left))
        except Exception:  # it is gone, busy, or too slow
            pass
        if ("closed", None) in found:
            self.cluster.idle.append(self.actor)
        else:
            self.kill()
        return bool(self.words), found  # of one that was lost, that was said


class Actor:
    """The worker's side: serves a module's `Server`, as `upslope.engines.processes.serve` does."""

    def __init__(self, expected: dict[str, Any], mixed: bool, cpus: int):
        self.problem = difference(expected, facts([]), mixed)
        use_cores(cpus)
        one_blas_thread()
        self.is_configured = False
        self.session: Session | None = None

    def begin(self, session: Session) -> None:
        """Serve a module anew, for another channel."""
        self.session = session
        self.answered = 0
        """The number of the last request that was answered."""
        self.outbox = Outbox()
        gc.unfreeze()  # the environments that were served before
        self.server = import_module(session[1]).Server()
        self.heartbeat = Heartbeat(self.server, self.outbox.put)
        self.server.notices = Notices(self.heartbeat.notice)

    def answer(self, session: Session, number: int, request: bytes, seen: int) -> bytes:
        """Answer a request, unless it was answered already; return the messages after the last that was seen."""
        if session != self.session:
            self.begin(session)
        if number > self.answered:
            self.answer_new(request)
            self.answered = number
        return self.outbox.after(seen)

    def answer_new(self, request: bytes) -> None:
        """Answer a request."""
        if self.problem:
            self.heartbeat.answer("refused", f"Node {place()} of the cluster {self.problem}")
            return
        try:
            what, arguments = pickle.loads(request)
        except Exception as error:  # a module is missing, or fails
            words = f"Node {place()} of the cluster cannot read what it was sent: {told(error)}"
            self.heartbeat.answer("refused", words)
            return
        if not self.is_configured:
            prepare(on_host=not any(map(is_compiled, arguments)))
            self.is_configured = True
        answer_request(self.server, self.heartbeat, what, arguments)

    def signs(self, seen: int) -> bytes:
        """The messages after the last that was seen, while `answer` is at work."""
        return self.outbox.after(seen)

    def interrupt(self) -> None:
        """Call the server's `interrupt`, while `answer` is at work."""
        self.server.interrupt()

    def close(self, seen: int) -> bytes:
        """Close the environments."""
        self.server.close()
        self.heartbeat.is_over.set()
        self.heartbeat.answer("closed", None)
        return self.outbox.after(seen)


class Outbox:
    """A worker's messages by their numbers, until the main process has seen them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.kept: deque[tuple[int, Message]] = deque()

    def put(self, message: Message) -> None:
        """Add a message; of heartbeats in a row the last is kept."""
        with self.lock:
            self.count += 1
            if message[0] == "beat" and self.kept and self.kept[-1][1][0] == "beat":
                self.kept.pop()
            self.kept.append((self.count, message))

    def after(self, seen: int) -> bytes:
        """This process's place, and the messages after the last that was seen; the earlier ones are forgotten."""
        with self.lock:
            while self.kept and self.kept[0][0] <= seen:
                self.kept.popleft()
            return pickle.dumps((place(), list(self.kept)), protocol=5)


def is_compiled(argument: Any) -> bool:
    """Whether an argument is, or has, a compiled environment."""
    return getattr(getattr(argument, "environment", argument), "is_compiled", False) is True


@cache
def place() -> str:
    """Where this process is, for a message."""
    import ray  # pyright: ignore[reportMissingImports]

    return f"{ray.util.get_node_ip_address()}, process {os.getpid()}"


connected: dict[tuple[Any, ...], Cluster] = {}
"""The clusters of this process, by connection and placement."""


def connect(placement: Placement) -> Cluster:
    """Connect to the cluster of a placement, or start one here.

    Raises:
        UpslopeError: Ray is missing, no cluster answers, or this process is connected to another one.
    """
    ray = require_ray()
    if not ray.is_initialized():
        begin(ray, placement)
        begun[connection(ray)] = placement
    here = connection(ray)
    first = begun.get(here, Placement(here[0]))
    if placement.address not in (AUTO, first.address, here[0]):
        raise UpslopeError(
            f"This process is connected to the cluster {here[0]} already, not to {placement.address}. Call "
            "ray.shutdown() first, or use another process."
        )
    if not set(placement.modules) <= set(first.modules):
        raise UpslopeError(
            "This process is connected to the cluster already, and modules are sent when it connects. Name them in "
            "the first call, or call ray.shutdown() before this one."
        )
    return connected.setdefault((*here, placement), Cluster(ray, placement))


begun: dict[tuple[str, str], Placement] = {}
"""The placements with which this process made its connections."""


def connection(ray: Any) -> tuple[str, str]:
    """The address of the cluster, and the name of this process's connection to it."""
    context = ray.get_runtime_context()
    return context.gcs_address, context.get_job_id()


def release(placement: Placement | None) -> None:
    """End the actors without work of a placement."""
    for (*_, other), cluster in connected.items():
        if other == placement:
            cluster.release()


def begin(ray: Any, placement: Placement) -> None:
    """Join a cluster; with `auto`, the one that runs on this machine, or else one that is started here and ends with
    this process."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if files := module_files(placement.modules):
        options["runtime_env"] = {"py_modules": [str(path) for path in files]}
    joining = {name: value for name, value in options.items() if name != "include_dashboard"}
    with suppress(AttributeError):  # pages of a lost node's log would go to standard output; upslope names what is lost
        ray._private.worker._worker_logs_enabled = False
    try:
        ray.init(address=placement.address, **joining)
    except ConnectionError as error:
        if placement.address != AUTO:
            raise UpslopeError(unreachable(placement.address, error)) from error
        ray.init(address="local", **options)
    except Exception as error:  # another version of Python or Ray, a missing token, a malformed address
        raise UpslopeError(unreachable(placement.address, error)) from error


def unreachable(address: str, error: Exception) -> str:
    """The error message for a failed attempt to join a cluster."""
    return (
        f"The cluster {address} cannot be joined: {brief(error)}. Start one by `ray start --head` on one machine and "
        "`ray start --address HOST:6379` on the others, with the same versions of Python and Ray and the same token. "
        "--cluster auto uses the one that runs here, or else this machine."
    )


def module_files(modules: Iterable[Path]) -> list[Path]:
    """What is sent to the nodes for the folders and files of --py-module: packages whole, and the modules of a folder
    that is no package.

    Raises:
        UpslopeError: one does not exist, or holds no module.
    """
    found: list[Path] = []
    for path in modules:
        inside = (
            [p for p in sorted(path.iterdir()) if is_module(p)] if path.is_dir() and not is_module(path) else [path]
        )
        if not inside or not all(is_module(p) for p in inside):
            raise UpslopeError(f"--py-module {path} is no Python module, package, or folder of modules.")
        found += inside
    return [path.resolve() for path in found]


def is_module(path: Path) -> bool:
    """Whether a path is a module or a package."""
    return (path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()


def fits(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many workers fit into these resources."""
    counts = [int(resources.get("CPU", 0.0) // cpus)] if cpus else []
    return min([*counts, *([int(resources.get("GPU", 0.0) // gpus)] if gpus else [])])


def resource_words(resources: dict[str, float]) -> str:
    """Processors and accelerators in words."""
    gpus = resources.get("GPU", 0.0)
    return f"{number(resources.get('CPU', 0.0))} CPU" + (f" and {number(gpus)} GPU" if gpus else "")


def install_words() -> str:
    """How to install this machine's versions."""
    pins = " ".join(f"{name}=={version(name)}" for name in PACKAGES)
    return f"pip install {pins}"


def facts(modules: Iterable[str]) -> dict[str, Any]:
    """What must be the same on all machines of a run, and which of the modules are missing here."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "processor": processor(),
        "missing": [name for name in modules if not is_importable(name)],
    }


def is_importable(name: str) -> bool:
    """Whether a module of this name is found."""
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, ValueError):
        return False


@cache
def processor() -> str:
    """The processor's model, and its features that change how numbers are rounded."""
    try:
        lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()]
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    known = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = known.get("flags", known.get("Features", "")).split()
    return f"{known.get('model name', platform.machine())}: {' '.join(sorted(filter(is_vector_feature, flags)))}"


def is_vector_feature(flag: str) -> bool:
    """Whether a processor's feature changes how XLA rounds."""
    return flag.startswith(VECTOR_FEATURES)


def difference(mine: dict[str, Any], theirs: dict[str, Any], mixed: bool) -> str:
    """How a node differs from this machine, as the end of a sentence; empty if it does not matter."""
    pairs = [(name, mine["versions"][name], theirs["versions"].get(name, "none")) for name in mine["versions"]]
    if other := [f"{name} {there} (here {here})" for name, here, there in pairs if here != there]:
        return f"has other versions: {', '.join(other)}. Numbers could differ. Install there: {install_words()}"
    if theirs["missing"]:
        return (
            f"lacks {', '.join(theirs['missing'])}, which this run imports. Send it along with --py-module "
            "PATH (a module, a package, or a folder of modules), or install it there."
        )
    if mine["processor"] != theirs["processor"] and not mixed:
        return (
            f"has another processor, which rounds otherwise: {theirs['processor']}; here {mine['processor']}. A seed's "
            "last digits would depend on where it trains. Leave the node out, or allow it with --mixed."
        )
    return ""


def modules_of(part: Any, environment: AnyEnvironment) -> list[str]:
    """The packages and modules, besides Python's own, that a node must import for what it is sent."""
    found: set[str] = set()

    class Finder(pickle.Pickler):
        """Notes the module of each class and function."""

        def reducer_override(self, obj: Any) -> Any:
            found.add(getattr(obj, "__module__", None) or type(obj).__module__)
            return NotImplemented

    Finder(io.BytesIO()).dump((part, environment))
    name = environment.name if isinstance(environment, HostEnvironment) else ""
    found |= {part for part in name.split(":")[:-1] if part.isidentifier() or "." in part}
    tops = {name.partition(".")[0] for name in found}
    return sorted(tops - set(sys.stdlib_module_names) - {"__main__", "upslope", "vector", "jax"})
