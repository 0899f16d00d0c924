"""Worker processes: ask and answer through pipes, and name whoever dies or hangs, in this process too.

A worker serves one of upslope's modules: it does not import the user's script again, as Python's own process pools do.
Its pipes are private: none is a standard descriptor, and no program that an environment starts inherits them.
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

from upslope.core.messages import told, warn
from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.engines.notices import Notices
from upslope.errors import UpslopeError
from upslope.learning.devices import one_blas_thread, settle

PATIENCE = 60.0
"""Seconds after which a worker is named that does nothing, or whose environment has not come back from a call."""
LIMIT = "UPSLOPE_WORKER_LIMIT"
"""After so many seconds, by default ten minutes, it is ended; the environment variable of this name sets another."""
BEAT = 1.0
"""Seconds between a worker's signs of life. Time is counted in them, not by a clock, which goes on while everything is
suspended."""


FAREWELL = 5.0
"""Seconds that a worker has to close its environments."""
BOOTSTRAP = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
module, requests, answers, path = json.loads(sys.argv[1])
os.set_inheritable(requests, False)
os.set_inheritable(answers, False)
here = os.path.realpath(os.curdir)
is_here = lambda entry: not entry or os.path.realpath(entry) == here
sys.path[:] = sorted(path, key=is_here)
sys.argv[:] = [module]
import importlib
server = importlib.import_module(module).Server()
from upslope.engines.processes import serve
serve(server, requests, answers, path)
"""
"""What a worker begins with. A file in the current folder must not stand in for one of Python's own modules, so that
folder comes last until upslope is imported; from then on the path is the main process's."""


class Worker:
    """A process that answers requests, one at a time."""

    def __init__(self, module: str, index: int, whose: str, notices: Notices):
        self.index, self.whose, self.notices = index, whose, notices
        # An accelerator's memory is for one process.
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
        """Queue what the process says, and that it has ended."""
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
        """Wait for the answer; name the worker where it hangs, end it where that lasts, and raise what went wrong."""
        silent, told, place = 0.0, 0.0, "it gives no sign of life"
        kind: str
        value: Any
        while True:
            try:
                kind, value = self.answers.get(timeout=min(BEAT, PATIENCE))
            except queue.Empty:
                silent += min(BEAT, PATIENCE)
                # A program that it started may hold its end of the pipe open.
                has_ended = self.process.poll() is not None and self.answers.empty()
                kind, value = "ended" if has_ended else "beat", (silent, place)
            else:
                silent = 0.0
            if kind == "beat":
                stuck, place = value
                if stuck - told >= PATIENCE:
                    told = stuck
                    say(f"{self.describe()} has not answered for {stuck:.0f} s: {place}.")
                # A process that starts gives no sign of life for a while.
                if stuck >= (max(limit(), PATIENCE) if silent else limit()):
                    raise self.ended_for(stuck, place)
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

    def ended_for(self, stuck: float, place: str) -> UpslopeError:
        """End the process."""
        self.process.kill()
        return UpslopeError(
            f"{self.describe()} has not answered for {stuck:.0f} s: {place}. It was ended. If the environment is only "
            f"slow, allow it more seconds: {LIMIT}={2 * stuck:.0f} upslope …"
        )

    def describe(self) -> str:
        """Which one."""
        return f"Worker process {self.index} (process {self.process.pid}, {self.whose})"

    def hang_up(self) -> None:
        """Tell the process to close its environments and to end."""
        with contextlib.suppress(OSError):  # what a dead process was still to be told
            self.requests.close()

    def close(self) -> None:
        """Wait for the end of the process, and tell what it still had to say."""
        self.hang_up()
        try:
            self.process.wait(timeout=FAREWELL)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(timeout=FAREWELL)
        is_closed = self.process.returncode >= 0
        while not self.answers.empty():
            kind, value = self.answers.get()
            is_closed |= kind == "closed"
            if kind == "notice":
                notice: Any = value
                self.notices(*notice)
        if not is_closed:
            self.notices("ended", f"warning: {self.describe()} was ended before it had closed its environments.")
        if not self.listener.is_alive():
            self.received.close()


def close_workers(workers: Sequence[Worker]) -> None:
    """Let all processes end, at the same time."""
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.close()


def answers_of(workers: Sequence[Worker], say: Callable[[str], None]) -> list[Any]:
    """The answers of all workers; all are waited for before one's error is raised."""
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
    """Write a message. Pickle passes between a run's own processes only, through pipes that nobody else holds; files
    that are loaded hold arrays and JSON."""
    pickle.dump(message, stream, protocol=5)
    stream.flush()


def limit() -> float:
    """How long a worker may hang."""
    text = os.environ.get(LIMIT, "600")
    try:
        return float(text)
    except ValueError as error:
        raise UpslopeError(f"{LIMIT} must be a number of seconds, not {text!r}.") from error


class Pulse:
    """The worker's signs of life: for how long it has been in the same call of an environment, and which."""

    def __init__(self, server: Any, stream: Any):
        self.server, self.stream, self.lock = server, stream, threading.Lock()
        self.request = 0
        self.is_busy = False
        self.is_over = threading.Event()
        threading.Thread(target=self.beat, daemon=True).start()

    def beat(self) -> None:
        """Once a second."""
        before, stuck = None, 0.0
        while not self.is_over.wait(BEAT):
            words = place_of(getattr(self.server, "columns", None))
            now = (self.request, words)
            stuck = stuck + BEAT if now == before and words and self.is_busy else 0.0
            before = now
            with self.lock:
                if self.is_busy:
                    try:
                        send(self.stream, ("beat", (stuck, words)))
                    except OSError:
                        return

    def end(self) -> None:
        """Say that everything is closed; no sign of life comes after that."""
        self.is_over.set()
        with contextlib.suppress(OSError):
            self.answer("closed", None)

    def begin(self) -> None:
        """A request has come."""
        self.request += 1
        self.is_busy = True

    def answer(self, kind: str, value: Any) -> None:
        """Answer it."""
        with self.lock:
            self.is_busy = False
            send(self.stream, (kind, value))

    def notice(self, kind: str, words: str) -> None:
        """Tell something besides, once of each kind; where the main process is gone, on the standard error."""
        try:
            with self.lock:
                send(self.stream, ("notice", (kind, words)))
        except OSError:
            with contextlib.suppress(OSError):
                warn(words)


class Lookout:
    """Names the environment of this process that has not come back from a call for long; nothing can end it but the
    user's interrupt."""

    def __init__(self, columns: Any, say: Callable[[str], None]):
        self.columns, self.say = columns, say
        self.is_over = threading.Event()
        self.is_named = False
        threading.Thread(target=self.watch, daemon=True).start()

    @property
    def hangs(self) -> bool:
        """Whether such an environment was named, and is still in a call: between two beats it may have come back."""
        return self.is_named and self.columns.row is not None

    def watch(self) -> None:
        """In beats, as workers are counted."""
        before, stuck, told = "", 0.0, 0.0
        while not self.is_over.wait(BEAT):
            words = place_of(self.columns)
            stuck = stuck + BEAT if words and words == before else 0.0
            before = words
            self.is_named = stuck >= PATIENCE
            told = told if self.is_named else 0.0
            if stuck - told >= PATIENCE:
                told = stuck
                self.say(
                    f"{words}, has not come back for {stuck:.0f} s. If it hangs, press Ctrl-C: that ends the call, "
                    "saves what came before this iteration, and stops."
                )

    def close(self) -> None:
        """Let the thread end."""
        self.is_over.set()


def place_of(columns: Any) -> str:
    """Which environment of a `HostColumns` is being called at this moment; empty if none is."""
    if columns is None:
        return "it is making its environments"
    row = columns.row
    if row is None:
        return ""
    episode = columns.episodes[row]
    return f"{columns.world.name} is in {'step' if episode.length else 'reset'}(), {episode.describe()}"


def settle_down() -> None:
    """Once a worker's environments are made: stop MuJoCo's timer, keep to one thread, freeze the garbage collector."""
    stop_stopwatch()
    one_blas_thread()  # once more, for libraries that the environments loaded
    # What is there by now lives as long as the process, and need not be searched for garbage again and again.
    gc.freeze()


def serve(server: Any, requests: int, answers: int, path: Sequence[str]) -> None:
    """The worker's side: answer requests with the server's methods until the main process is gone, then close.

    `requests` and `answers` are descriptors, `path` is the main process's search path.
    """
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what Ctrl-C means
    # A program started from here must still end by it, so it is not ignored but does nothing.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    os.dup2(2, 1)  # what an environment prints goes where errors go
    settle(on_host=True)
    one_blas_thread()
    with os.fdopen(requests, "rb") as asked, contextlib.suppress(OSError), os.fdopen(answers, "wb") as told_back:
        pulse = Pulse(server, told_back)
        server.notices = Notices(pulse.notice)
        try:
            answer_all(server, asked, pulse)
        finally:
            server.close()
            pulse.end()
    # All is closed. To take the interpreter apart, too, would only take time, and libraries would tell of what is left.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def answer_all(server: Any, requests: Any, pulse: "Pulse") -> None:
    """Answer requests until there are no more."""
    while True:
        try:
            what, arguments = pickle.load(requests)
        except EOFError:
            return
        pulse.begin()
        try:
            pulse.answer("done", getattr(server, what)(*arguments))
        except BrokenPipeError:
            return
        except UpslopeError as error:
            pulse.answer("refused", str(error))
        except Exception as error:
            pulse.answer("refused", f"{told(error)} in a worker process")
