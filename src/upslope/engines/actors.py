"""Run workers as Ray actors (extra `ray`). This module contains the main process's channel and the actor itself.

An actor runs the same `Server` as a process on this machine, and its channel carries the same messages, so the training
code does not depend on where its workers are.

Every message from a worker has a number, and every call states the number of the last message that the main process has
seen. A call whose answer was lost in transit can therefore be repeated: instead of repeating the work, the worker
resends the messages that have not been seen. Messages are pickled, like those sent through pipes, and pass only between
the nodes of the cluster.
"""

import gc
import os
import pickle
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any
from uuid import uuid4

from upslope.core.messages import told
from upslope.engines.base import Placement
from upslope.engines.nodes import difference, facts
from upslope.engines.notices import Notices
from upslope.engines.transport import CLOSING_SECONDS, Heartbeat, Message, WorkerLostError, answer_request
from upslope.learning.devices import num_cores, one_blas_thread, prepare, use_cores

UNREACHABLE_SECONDS = 60.0
"""Seconds after which a worker that Ray cannot reach is considered lost."""
INLINE = {"RAY_max_direct_call_object_size": str(4 << 20)}
"""Messages of up to 4 MB travel within calls and results. By default, those larger than 100 kB, such as a seed's state,
go through the nodes' object stores, which takes a few milliseconds."""

Session = tuple[str, str]
"""A channel's unique name, and the module whose `Server` answers it."""


@dataclass
class Call:
    """A call of an actor's `answer` whose result is pending, with everything needed to repeat it."""

    number: int
    request: bytes
    result: Any = None
    """Ray's reference to the result."""


class ActorChannel:
    """A channel to an actor.

    A request is one call, whose result holds the answer and any notices before it. Heartbeats are requested only while
    an answer is slow to arrive."""

    error = WorkerLostError

    def __init__(self, ray: Any, actor: Any, module: str, give_back: Callable[[Any], None]):
        """`give_back` receives the actor after it has closed its environments, so that the next channel can use it."""
        self.ray, self.actor, self.give_back = ray, actor, give_back
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
        return "it does not respond" if self.node else "it is waiting for a node with free processors, or starting up"

    def send(self, request: tuple[str, tuple[Any, ...]]) -> None:
        self.number += 1
        self.calls.append(Call(self.number, pickle.dumps(request, protocol=5)))
        self.submit(self.calls[-1])

    def submit(self, call: Call) -> None:
        """Make a call, or repeat it."""
        # Ray needs a twentieth of a millisecond per argument, so there is only one.
        packed = pickle.dumps((self.session, call.number, call.request, self.seen), protocol=5)
        call.result = self.actor.answer.remote(packed)

    def receive(self, seconds: float) -> Message:
        while not self.messages:
            self.messages.extend(self.arrived(seconds))
        return self.messages.popleft()

    def arrived(self, seconds: float) -> list[Message]:
        """Return the messages of the next result to arrive.

        Raises:
            queue.Empty: no result arrived within that time.
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
        """Return whichever arrives first, the result of a call or the heartbeats."""
        ready, _ = self.ray.wait([result, signs], timeout=seconds)
        if not ready:
            raise queue.Empty
        return ready[0]

    def again(self, call: Call, seconds: float, error: Exception) -> list[Message]:
        """Repeat a call to a worker that cannot be reached at the moment. After a minute, the worker is considered
        lost."""
        self.unreachable += seconds
        if self.unreachable > UNREACHABLE_SECONDS:
            return self.gone(error)
        time.sleep(seconds)
        self.signs = None
        self.submit(call)
        raise queue.Empty

    def gone(self, error: Exception) -> list[Message]:
        """Record how the worker was lost."""
        first, *_ = str(error).strip().splitlines() or [type(error).__name__]
        self.words = f"was lost: {first.rstrip('.'):.120}"
        return [("ended", None)]

    def new_ones(self, reply: bytes) -> list[Message]:
        """Return the messages of a reply that have not been seen yet."""
        self.node, numbered = pickle.loads(reply)
        found = [message for number, message in numbered if number > self.seen]
        self.seen = max([self.seen, *(number for number, _ in numbered)])
        return found

    def ending(self) -> str:
        return self.words

    def kill(self) -> None:
        end_actor(self.ray, self.actor)

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
        except Exception:  # the actor has ended, is busy, or is too slow
            pass
        if ("closed", None) in found:
            self.give_back(self.actor)
        else:
            self.kill()
        return bool(self.words), found  # the loss of this worker was already reported


def new_actor(ray: Any, placement: Placement) -> Any:
    """Start an actor on a node with enough free resources."""
    # An actor that was not assigned an accelerator must not take one. XLA gets the same number of threads as in this
    # process; see `PipeChannel`.
    variables = {"NPROC": str(num_cores())} | INLINE | ({} if placement.worker_gpus else {"JAX_PLATFORMS": "cpu"})
    kind = ray.remote(
        num_cpus=placement.worker_cpus,
        num_gpus=placement.worker_gpus,
        max_restarts=0,
        concurrency_groups={"signs": 1},
        enable_task_events=False,  # for Ray's dashboard only; recording each step of an environment takes time
        runtime_env={"env_vars": variables},
        scheduling_strategy="SPREAD",
    )(Actor)
    return kind.remote(facts([]), placement.mixed, max(1, int(placement.worker_cpus)))


def end_actor(ray: Any, actor: Any) -> None:
    """End an actor immediately."""
    with suppress(Exception):  # it may have ended already
        ray.kill(actor)


class Actor:
    """The actor, which runs a module's `Server` as `upslope.engines.processes.serve` does."""

    def __init__(self, expected: dict[str, Any], mixed: bool, cpus: int):
        self.problem = difference(expected, facts([]), mixed)
        use_cores(cpus)
        one_blas_thread()
        self.is_configured = False
        self.session: Session | None = None

    def begin(self, session: Session) -> None:
        """Start serving a module for a new channel."""
        self.session = session
        self.answered = 0
        """The number of the last request that was answered."""
        self.outbox = Outbox()
        gc.unfreeze()  # allow the previous environments to be collected
        self.server = import_module(session[1]).Server()
        self.heartbeat = Heartbeat(self.server, self.outbox.put)
        self.server.notices = Notices(self.heartbeat.notice)

    def answer(self, packed: bytes) -> bytes:
        """Answer a request unless it was answered already, and return the messages after the last one that was seen.

        A request comes with its channel, its number, and the number of the last message that was seen.
        """
        session: Session
        session, number, request, seen = pickle.loads(packed)
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
        except Exception as error:  # a module is missing or cannot be imported
            words = f"Node {place()} of the cluster could not read the data that it was sent: {told(error)}"
            self.heartbeat.answer("refused", words)
            return
        if not self.is_configured:
            prepare(on_host=not any(map(is_compiled, arguments)))
            self.is_configured = True
        answer_request(self.server, self.heartbeat, what, arguments)

    def signs(self, seen: int) -> bytes:
        """Return the messages after the last one that was seen, while `answer` is running."""
        return self.outbox.after(seen)

    def interrupt(self) -> None:
        """Call the server's `interrupt` while `answer` is running."""
        self.server.interrupt()

    def close(self, seen: int) -> bytes:
        """Close the environments."""
        self.server.close()
        self.heartbeat.is_over.set()
        self.heartbeat.answer("closed", None)
        return self.outbox.after(seen)


class Outbox:
    """Keeps a worker's messages by number until the main process has seen them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0
        self.kept: deque[tuple[int, Message]] = deque()

    def put(self, message: Message) -> None:
        """Add a message. Of consecutive heartbeats, only the last is kept."""
        with self.lock:
            self.count += 1
            if message[0] == "beat" and self.kept and self.kept[-1][1][0] == "beat":
                self.kept.pop()
            self.kept.append((self.count, message))

    def after(self, seen: int) -> bytes:
        """Return this process's place and the messages after the last one that was seen, and discard the earlier
        ones."""
        with self.lock:
            while self.kept and self.kept[0][0] <= seen:
                self.kept.popleft()
            return pickle.dumps((place(), list(self.kept)), protocol=5)


def is_compiled(argument: Any) -> bool:
    """Return whether an argument is or contains a compiled environment."""
    return getattr(getattr(argument, "environment", argument), "is_compiled", False) is True


@cache
def place() -> str:
    """Return this process's location for a message."""
    import ray  # pyright: ignore[reportMissingImports]

    return f"{ray.util.get_node_ip_address()}, process {os.getpid()}"
