"""The protocol between the main process and its workers: requests, answers, heartbeats in between, and errors that name
a dead or hanging worker.

Neither the protocol nor the code that uses workers depends on how messages are carried. A `Channel` is a pair of pipes
to a process (`processes.py`) or an actor on a cluster (`actors.py`).
"""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol, runtime_checkable

from upslope.core.messages import told
from upslope.engines.notices import Notices
from upslope.errors import STOPS, UpslopeError

PATIENCE = 60.0
"""Seconds after which a silent worker, or one whose environment has not returned from a call, is reported."""
LIMIT = "UPSLOPE_WORKER_LIMIT"
"""Environment variable for the seconds after which a hanging worker is killed; the default is ten minutes."""
BEAT = 1.0
"""Seconds between a worker's heartbeats. Time is counted in heartbeats, since a clock would keep running while the
machine is suspended."""
CLOSING_SECONDS = 5.0
"""Seconds that a worker may take to close its environments."""
MAX_LOSSES = 3
"""Maximum number of consecutive restarts of the same work after its workers on a cluster were lost."""
Message = tuple[str, Any]
"""(kind, value): `done` with the answer, `refused` with a message, `beat` with (seconds, message), `notice` with (kind,
message), `closed`, or `ended`."""


class WorkerLostError(UpslopeError):
    """Raised when a worker on a cluster was lost. Another worker can redo its work from the last checkpoint."""


class ClusterGrownError(WorkerLostError):
    """Raised when a cluster has room for more workers of a run, which can continue with them from its last
    checkpoint."""


@runtime_checkable
class Channel(Protocol):
    """Carries messages to one worker and back."""

    @property
    def error(self) -> type[UpslopeError]:
        """The type of error to raise for a worker that has ended."""
        ...

    @property
    def place(self) -> str:
        """Where the worker is, e.g. `process 123`."""
        ...

    @property
    def waiting_for(self) -> str:
        """A possible reason why a worker is silent."""
        ...

    def send(self, request: tuple[str, tuple[Any, ...]]) -> None:
        """Send a request, (method, arguments)."""
        ...

    def receive(self, seconds: float) -> Message:
        """Return the next message, or `ended` if there will be no more messages.

        Raises:
            queue.Empty: no message arrived within that time.
        """
        ...

    def ending(self) -> str:
        """Describe how the worker ended, for a message."""
        ...

    def kill(self) -> None:
        """End the worker immediately."""
        ...

    def interrupt(self) -> None:
        """Call the server's `interrupt` while it is busy, or end the worker if that is impossible."""
        ...

    def request_exit(self) -> None:
        """Have the worker close its environments and end."""
        ...

    def close(self) -> tuple[bool, list[Message]]:
        """Wait until the worker has ended. Return whether it had closed its environments, and its last messages."""
        ...


class Worker:
    """A worker at the other end of a channel, which answers one request at a time."""

    def __init__(self, channel: Channel, index: int, share: str, notices: Notices):
        self.channel, self.index, self.share, self.notices = channel, index, share, notices
        self.unanswered = 0
        """Number of requests whose answers have not arrived. One remains if the user interrupts the wait."""

    def ask(self, what: str, *arguments: Any) -> None:
        """Send a request."""
        while self.unanswered:
            with contextlib.suppress(UpslopeError):
                self.answer(lambda words: None)
        self.channel.send((what, arguments))
        self.unanswered += 1

    def answer(self, say: Callable[[str], None]) -> Any:
        """Wait for the answer and raise the worker's errors. A worker that hangs is reported, and killed after the time
        limit."""
        try:
            value = self.wait(say)
        except UpslopeError:
            self.unanswered -= 1
            raise
        self.unanswered -= 1
        return value

    def wait(self, say: Callable[[str], None]) -> Any:
        """See `answer`."""
        silent, reported, place = 0.0, 0.0, ""
        kind: str
        value: Any
        while True:
            seconds = min(BEAT, PATIENCE)
            try:
                kind, value = self.channel.receive(seconds)
            except queue.Empty:
                silent += seconds
                kind, value = "beat", (silent, place or self.channel.waiting_for)
            else:
                silent = 0.0
            if kind == "beat":
                seconds, place = value
                if seconds - reported >= PATIENCE:
                    reported = seconds
                    say(f"{self.describe()} has not answered for {seconds:.0f} s: {place}.")
                # A process that is starting sends no heartbeats for a while.
                if seconds >= (max(limit(), PATIENCE) if silent else limit()):
                    raise self.kill_unresponsive(seconds, place)
            elif kind == "notice":
                self.notices(*value)
            elif kind == "done":
                return value
            elif kind in ("closed", "ended"):  # without an answer
                raise self.channel.error(f"{self.describe()} {self.channel.ending()}.")
            else:
                raise UpslopeError(value)

    def kill_unresponsive(self, seconds: float, place: str) -> UpslopeError:
        """Kill the worker and return the error to raise."""
        self.channel.kill()
        return UpslopeError(
            f"{self.describe()} has not answered for {seconds:.0f} s: {place}. It was killed. If the environment is "
            f"only slow, allow more seconds: {LIMIT}={2 * seconds:.0f} upslope …"
        )

    def describe(self) -> str:
        """Name the worker for a message."""
        return f"Worker process {self.index} ({self.channel.place}, {self.share})"

    def request_exit(self) -> None:
        """Have the worker close its environments and end."""
        self.channel.request_exit()

    def close(self) -> None:
        """Wait until the worker has ended, and report its last messages."""
        self.request_exit()
        is_closed, messages = self.channel.close()
        for kind, value in messages:
            is_closed |= kind == "closed"
            if kind == "notice":
                self.notices(*value)
        if not is_closed:
            self.notices("ended", f"warning: {self.describe()} was killed before it closed its environments.")


StartWorker = Callable[[str, int, str, Notices], Worker]
"""A function that starts a worker. Its arguments are the module whose `Server` the worker runs, the worker's number, a
description of its share of the work, and notices."""


def close_workers(workers: Sequence[Worker]) -> None:
    """Shut all workers down in parallel."""
    for worker in workers:
        worker.request_exit()
    for worker in workers:
        worker.close()


@runtime_checkable
class Answering(Protocol):
    """An object that has been sent a request, e.g. a `Worker`."""

    def answer(self, say: Callable[[str], None]) -> Any:
        """Wait for the answer."""
        ...


def answers_of(workers: Sequence[Answering], say: Callable[[str], None]) -> list[Any]:
    """Return the answers of all workers. An error is raised only after all workers have answered."""
    answers: list[Any] = []
    errors: list[UpslopeError] = []
    for worker in workers:
        try:
            answers.append(worker.answer(say))
        except UpslopeError as error:
            errors.append(error)
    if errors:
        raise next((error for error in errors if not isinstance(error, WorkerLostError)), errors[0])
    return answers


def limit() -> float:
    """Return the number of seconds for which a worker may hang."""
    text = os.environ.get(LIMIT, "600")
    try:
        return float(text)
    except ValueError as error:
        raise UpslopeError(f"{LIMIT} must be a number of seconds, not {text!r}.") from error


class Heartbeat:
    """The worker's end of a channel, which sends answers, notices, and heartbeats that name the current environment
    call."""

    def __init__(self, server: Any, send: Callable[[Message], None]):
        """`send` raises an `OSError` if the main process has exited."""
        self.server, self.send, self.lock = server, send, threading.Lock()
        self.request = 0
        self.is_busy = False
        self.is_over = threading.Event()
        threading.Thread(target=self.beat, daemon=True).start()

    def beat(self) -> None:
        """Send a heartbeat once a second."""
        before, seconds = None, 0.0
        while not self.is_over.wait(BEAT):
            words = current_call(getattr(self.server, "columns", None))
            now = (self.request, words)
            seconds = seconds + BEAT if now == before and words and self.is_busy else 0.0
            before = now
            with self.lock:
                if self.is_busy:
                    try:
                        self.send(("beat", (seconds, words)))
                    except OSError:
                        return

    def begin(self) -> None:
        """Record that a request has arrived."""
        self.request += 1
        self.is_busy = True

    def answer(self, kind: str, value: Any) -> None:
        """Send the answer to the request."""
        with self.lock:
            self.is_busy = False
            self.send((kind, value))

    def notice(self, kind: str, words: str) -> None:
        """Send a notice."""
        with self.lock:
            self.send(("notice", (kind, words)))


def answer_request(server: Any, heartbeat: Heartbeat, what: str, arguments: Sequence[Any]) -> None:
    """Answer a request with a method of the server. Errors are converted to messages."""
    heartbeat.begin()
    try:
        heartbeat.answer("done", getattr(server, what)(*arguments))
    except BrokenPipeError:
        raise
    except UpslopeError as error:
        heartbeat.answer("refused", str(error))
    except STOPS:
        raise
    except BaseException as error:
        heartbeat.answer("refused", f"{told(error)} in a worker process")


def current_call(columns: Any) -> str:
    """Describe the environment of a `HostColumns` that is currently being called, or return an empty string if there is
    none."""
    if columns is None:
        return "it is still creating its environments"
    row = columns.row
    if row is None:
        return ""
    episode = columns.episodes[row]
    return f"{columns.world.name} is in {'step' if episode.length else 'reset'}(), {episode.describe()}"


class Stragglers:
    """Reports once if a worker has been much slower than the others for a long time."""

    RATIO, TIMES = 2.0, 20

    def __init__(self) -> None:
        self.slow: dict[int, int] = {}

    def look(self, seconds: Sequence[float], workers: Sequence[Worker], say: Callable[[str], None]) -> None:
        """Compare the seconds per seed that each worker took for this chunk."""
        typical = median(seconds)
        for number, (taken, worker) in enumerate(zip(seconds, workers, strict=True)):
            self.slow[number] = self.slow.get(number, 0) + 1 if taken > self.RATIO * typical > 0 else 0
            if self.slow[number] == self.TIMES:
                say(
                    f"{worker.describe()} is slow: {taken:.2f} s per seed, while the others take "
                    f"{typical:.2f} s, in each of {self.TIMES} chunks. All others wait for it. Is "
                    "something else running there?"
                )
                self.slow[number] = -(10**9)  # once
