"""Worker processes: ask and answer through pipes, and name whoever dies or hangs.

A worker is `python -m upslope.<module>`: it does not import the user's script again, as Python's own process pools do.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from upslope.devices import settle
from upslope.errors import UpslopeError

PATIENCE = 60.0
"""Seconds after which a worker that has not answered is named."""


class Worker:
    """A process that answers requests, one at a time."""

    def __init__(self, module: str, index: int, whose: str):
        self.index, self.whose = index, whose
        environment = os.environ | {"NPROC": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
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
        """Wait for the answer; name the worker where it takes long, and raise what went wrong."""
        waited = 0.0
        while True:
            try:
                kind, value = self.answers.get(timeout=PATIENCE)
                break
            except queue.Empty:
                waited += PATIENCE
                say(f"{self.describe()} has not answered for {waited:.0f} s: is its environment still running?")
        if kind == "ended":
            self.process.wait()
            raise UpslopeError(f"{self.describe()} ended with exit status {self.process.returncode}.")
        if kind == "refused":
            raise UpslopeError(value)
        return value

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


def serve(server: Any) -> None:
    """The worker's side: answer requests with the server's methods until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process decides what Ctrl-C means
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an environment prints must not get between the answers
    settle(on_host=True)
    while True:
        try:
            what, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            send(answers, ("done", getattr(server, what)(*arguments)))
        except BrokenPipeError:
            return
        except UpslopeError as error:
            send(answers, ("refused", str(error)))
        except Exception as error:
            send(answers, ("refused", f"{type(error).__name__} in a worker process: {error}"))
