"""Worker processes: ask and answer through pipes, and name whoever dies or hangs, in this process too.

A worker is `python -m upslope.<module>`: it does not import the user's script again, as Python's own process pools do.
"""

import contextlib
import gc
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.errors import UpslopeError
from upslope.learning.devices import settle

PATIENCE = 60.0
"""Seconds after which a worker is named that does nothing, or whose environment has not come back from a call."""
LIMIT = "UPSLOPE_WORKER_LIMIT"
"""After so many seconds, by default ten minutes, it is ended; the environment variable of this name sets another."""
BEAT = 1.0
"""Seconds between a worker's signs of life. Time is counted in them, not by a clock, which goes on while everything is
suspended."""


class Worker:
    """A process that answers requests, one at a time."""

    def __init__(self, module: str, index: int, whose: str):
        self.index, self.whose = index, whose
        # An accelerator's memory is for one process.
        environment = os.environ | {"NPROC": "1", "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        command = [sys.executable, "-m", module]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self.answers: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Queue what the process says, and that it has ended."""
        assert self.process.stdout is not None
        try:
            while True:
                self.answers.put(pickle.load(self.process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            self.answers.put(("ended", None))

    def ask(self, what: str, *arguments: Any) -> None:
        """Send a request."""
        assert self.process.stdin is not None
        try:
            send(self.process.stdin, (what, arguments))
        except OSError:
            self.answers.put(("ended", None))

    def answer(self, say: Callable[[str], None]) -> Any:
        """Wait for the answer; name the worker where it hangs, end it where that lasts, and raise what went wrong."""
        silent, told, place = 0.0, 0.0, "it gives no sign of life"
        while True:
            try:
                kind, value = self.answers.get(timeout=min(BEAT, PATIENCE))
            except queue.Empty:
                silent += min(BEAT, PATIENCE)
                kind, value = "beat", (silent, place)
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

    def close(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # what a dead process was still to be told
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()


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
        threading.Thread(target=self.beat, daemon=True).start()

    def beat(self) -> None:
        """Once a second."""
        before, stuck = None, 0.0
        while True:
            time.sleep(BEAT)
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

    def begin(self) -> None:
        """A request has come."""
        self.request += 1
        self.is_busy = True

    def answer(self, kind: str, value: Any) -> None:
        """Answer it."""
        with self.lock:
            self.is_busy = False
            send(self.stream, (kind, value))


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
    """In a worker whose environments are made: what takes time and serves nobody."""
    stop_stopwatch()
    # What is there by now lives as long as the process, and need not be searched for garbage again and again.
    gc.freeze()


def serve(server: Any) -> None:
    """The worker's side: answer requests with the server's methods until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an environment prints must not get between the answers
    settle(on_host=True)
    pulse = Pulse(server, answers)
    while True:
        try:
            what, arguments = pickle.load(sys.stdin.buffer)
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
            pulse.answer("refused", f"{type(error).__name__} in a worker process: {error}")
