"""Worker processes: exchange requests and answers through pipes, and report workers or environments that die or hang.

A worker serves one of upslope's modules. Unlike in Python's process pools, it does not import the user's script again.
Its pipes are private: none is a standard descriptor, and programs that an environment starts do not inherit them.
"""

import atexit
import contextlib
import gc
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from upslope.core.child_processes import CURRENT_FOLDER_LAST
from upslope.core.messages import told, warn
from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.engines.notices import Notices
from upslope.errors import UpslopeError
from upslope.learning.devices import configure_jax, one_blas_thread

PATIENCE = 60.0
"""Seconds after which a silent worker, or one whose environment has not returned from a call, is reported."""
LIMIT = "UPSLOPE_WORKER_LIMIT"
"""Environment variable: seconds after which a hanging worker is killed; ten minutes by default."""
BEAT = 1.0
"""Seconds between a worker's heartbeats. Time is counted in heartbeats, not by a clock, which keeps running while the
machine is suspended."""


CLOSING_SECONDS = 5.0
"""Seconds that a worker may take to close its environments."""
BOOTSTRAP = f"""
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
module, requests, answers, path = json.loads(sys.argv[1])
os.set_inheritable(requests, False)
os.set_inheritable(answers, False)
{CURRENT_FOLDER_LAST}
sys.argv[:] = [module]
import importlib
server = importlib.import_module(module).Server()
from upslope.engines.processes import serve
serve(server, requests, answers, path)
"""
"""The code that starts a worker. Once upslope is imported, its path is the main process's."""


class Worker:
    """A process that answers requests, one at a time."""

    def __init__(self, module: str, index: int, share: str, notices: Notices):
        self.index, self.share, self.notices = index, share, notices
        # Only one process may hold an accelerator's memory.
        environment = os.environ | {"NPROC": "1", "JAX_PLATFORMS": "cpu"}
        (requests, mine), (theirs, answers) = os.pipe(), os.pipe()
        self.requests, self.received = os.fdopen(mine, "wb"), os.fdopen(theirs, "rb")
        arguments = json.dumps([module, requests, answers, [p for p in sys.path if isinstance(p, str)]])
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOTSTRAP, arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(requests, answers),
                env=environment,
            )
        except BaseException:
            self.requests.close()
            self.received.close()
            raise
        finally:
            os.close(requests)
            os.close(answers)
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        """Queue the process's messages, and note when it ends."""
        try:
            while True:
                self.answers.put(pickle.load(self.received))
        except Exception:  # the end of the pipe, or what a dying process left in it
            self.answers.put(("ended", None))

    def ask(self, what: str, *arguments: Any) -> None:
        """Send a request."""
        try:
            send(self.requests, (what, arguments))
        except OSError:
            self.answers.put(("ended", None))

    def answer(self, say: Callable[[str], None]) -> Any:
        """Wait for the answer; report a worker that hangs, kill it past the limit, and raise its errors."""
        silent, reported, place = 0.0, 0.0, "it does not respond"
        kind: str
        value: Any
        while True:
            try:
                kind, value = self.answers.get(timeout=min(BEAT, PATIENCE))
            except queue.Empty:
                silent += min(BEAT, PATIENCE)
                # A program that the worker started may keep the pipe open.
                has_ended = self.process.poll() is not None and self.answers.empty()
                kind, value = "ended" if has_ended else "beat", (silent, place)
            else:
                silent = 0.0
            if kind == "beat":
                seconds, place = value
                if seconds - reported >= PATIENCE:
                    reported = seconds
                    say(f"{self.describe()} has not answered for {seconds:.0f} s: {place}.")
                # A process that is starting sends no heartbeat for a while.
                if seconds >= (max(limit(), PATIENCE) if silent else limit()):
                    raise self.kill_unresponsive(seconds, place)
                continue
            if kind == "notice":
                notice: Any = value
                self.notices(*notice)
                continue
            if kind == "done":
                return value
            if kind == "ended":
                self.process.wait()
                raise UpslopeError(f"{self.describe()} ended with exit status {self.process.returncode}.")
            raise UpslopeError(value)

    def kill_unresponsive(self, seconds: float, place: str) -> UpslopeError:
        """Kill the process and return the error to raise."""
        self.process.kill()
        return UpslopeError(
            f"{self.describe()} has not answered for {seconds:.0f} s: {place}. It was killed. If the environment is "
            f"only slow, allow more seconds: {LIMIT}={2 * seconds:.0f} upslope …"
        )

    def describe(self) -> str:
        """Name the worker for a message."""
        return f"Worker process {self.index} (process {self.process.pid}, {self.share})"

    def request_exit(self) -> None:
        """Tell the process to close its environments and exit."""
        with contextlib.suppress(OSError):  # the process is dead, with requests still in the buffer
            self.requests.close()

    def close(self) -> None:
        """Wait for the process to exit, and report its last messages."""
        self.request_exit()
        try:
            self.process.wait(timeout=CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(timeout=CLOSING_SECONDS)
        is_closed = self.process.returncode >= 0
        while not self.answers.empty():
            kind, value = self.answers.get()
            is_closed |= kind == "closed"
            if kind == "notice":
                notice: Any = value
                self.notices(*notice)
        if not is_closed:
            self.notices("ended", f"warning: {self.describe()} was killed before it had closed its environments.")
        if not self.listener.is_alive():
            self.received.close()


def close_workers(workers: Sequence[Worker]) -> None:
    """Shut all processes down in parallel."""
    for worker in workers:
        worker.request_exit()
    for worker in workers:
        worker.close()


def answers_of(workers: Sequence[Worker], say: Callable[[str], None]) -> list[Any]:
    """The answers of all workers; an error is raised only after all have answered."""
    answers: list[Any] = []
    errors: list[UpslopeError] = []
    for worker in workers:
        try:
            answers.append(worker.answer(say))
        except UpslopeError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return answers


def send(stream: Any, message: Any) -> None:
    """Write a pickled message. Pickle passes only between a run's own processes, through private pipes; files that are
    loaded hold arrays and JSON."""
    pickle.dump(message, stream, protocol=5)
    stream.flush()


def limit() -> float:
    """The number of seconds a worker may hang."""
    text = os.environ.get(LIMIT, "600")
    try:
        return float(text)
    except ValueError as error:
        raise UpslopeError(f"{LIMIT} must be a number of seconds, not {text!r}.") from error


class Heartbeat:
    """Sends a worker's heartbeats, which report its current environment call and its duration."""

    def __init__(self, server: Any, stream: Any):
        self.server, self.stream, self.lock = server, stream, threading.Lock()
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
                        send(self.stream, ("beat", (seconds, words)))
                    except OSError:
                        return

    def end(self) -> None:
        """Report that everything is closed, and stop the heartbeats."""
        self.is_over.set()
        with contextlib.suppress(OSError):
            self.answer("closed", None)

    def begin(self) -> None:
        """Note that a request has arrived."""
        self.request += 1
        self.is_busy = True

    def answer(self, kind: str, value: Any) -> None:
        """Send the answer to the request."""
        with self.lock:
            self.is_busy = False
            send(self.stream, (kind, value))

    def notice(self, kind: str, words: str) -> None:
        """Send a notice, once per kind; on standard error if the main process is gone."""
        try:
            with self.lock:
                send(self.stream, ("notice", (kind, words)))
        except OSError:
            with contextlib.suppress(OSError):
                warn(words)


class HangMonitor:
    """Reports an environment of this process that is stuck in a call; only the user can interrupt it."""

    def __init__(self, columns: Any, say: Callable[[str], None]):
        self.columns, self.say = columns, say
        self.is_over = threading.Event()
        self.is_reported = False
        threading.Thread(target=self.watch, daemon=True).start()

    @property
    def hangs(self) -> bool:
        """Whether an environment was reported and is still in its call; it may have returned since the last beat."""
        return self.is_reported and self.columns.row is not None

    def watch(self) -> None:
        """Check once per beat; time is counted in beats, as for workers."""
        before, seconds, reported = "", 0.0, 0.0
        while not self.is_over.wait(BEAT):
            words = current_call(self.columns)
            seconds = seconds + BEAT if words and words == before else 0.0
            before = words
            self.is_reported = seconds >= PATIENCE
            reported = reported if self.is_reported else 0.0
            if seconds - reported >= PATIENCE:
                reported = seconds
                self.say(
                    f"{words}, has not returned for {seconds:.0f} s. If it hangs, press Ctrl-C to interrupt the call, "
                    "save everything up to this iteration, and stop."
                )

    def close(self) -> None:
        """Stop the thread."""
        self.is_over.set()


def current_call(columns: Any) -> str:
    """The environment of a `HostColumns` that is currently being called; empty if none is."""
    if columns is None:
        return "it is creating its environments"
    row = columns.row
    if row is None:
        return ""
    episode = columns.episodes[row]
    return f"{columns.world.name} is in {'step' if episode.length else 'reset'}(), {episode.describe()}"


def reduce_overhead() -> None:
    """Stop MuJoCo's timer, limit NumPy to one thread, and freeze the garbage collector.

    To be called once a worker's environments exist.
    """
    stop_stopwatch()
    one_blas_thread()  # again, for libraries that the environments loaded
    # Objects created so far live as long as the process, so the collector need not scan them.
    gc.freeze()


def serve(server: Any, requests: int, answers: int, path: Sequence[str]) -> None:
    """The worker's side: answer requests with the server's methods until the main process is gone, then close.

    `requests` and `answers` are descriptors; `path` is the main process's search path.
    """
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    # A handler that does nothing, not SIG_IGN: child programs would inherit SIG_IGN and could not be terminated.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    os.dup2(2, 1)  # send an environment's output to standard error
    configure_jax(on_host=True)
    one_blas_thread()
    with os.fdopen(requests, "rb") as asked, contextlib.suppress(OSError), os.fdopen(answers, "wb") as answering:
        heartbeat = Heartbeat(server, answering)
        server.notices = Notices(heartbeat.notice)
        try:
            answer_all(server, asked, heartbeat)
        finally:
            server.close()
            heartbeat.end()
    # Everything is closed. Tearing down the interpreter would only take time and make libraries print warnings.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def answer_all(server: Any, requests: Any, heartbeat: "Heartbeat") -> None:
    """Answer requests until the stream ends."""
    while True:
        try:
            what, arguments = pickle.load(requests)
        except EOFError:
            return
        heartbeat.begin()
        try:
            heartbeat.answer("done", getattr(server, what)(*arguments))
        except BrokenPipeError:
            return
        except UpslopeError as error:
            heartbeat.answer("refused", str(error))
        except Exception as error:
            heartbeat.answer("refused", f"{told(error)} in a worker process")
