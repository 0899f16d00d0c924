"""Workers as processes on this machine, which exchange requests and answers through pipes.

A worker serves one of upslope's modules. Unlike Python's process pools, it does not import the user's script again.
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
from functools import partial
from typing import Any

from upslope.core.child_processes import CURRENT_FOLDER_LAST
from upslope.core.messages import warn
from upslope.engines import transport
from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.engines.notices import Notices
from upslope.engines.transport import CLOSING_SECONDS, Heartbeat, Message, Worker, answer_request, current_call
from upslope.errors import UpslopeError
from upslope.learning.devices import configure_jax, one_blas_thread

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


class PipeChannel:
    """Two pipes to a process on this machine."""

    error = UpslopeError
    waiting_for = "it does not respond"

    def __init__(self, module: str):
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
        self.answers: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        """Queue the process's messages, and note when it ends."""
        try:
            while True:
                self.answers.put(pickle.load(self.received))
        except Exception:  # the end of the pipe, or what a dying process left in it
            self.answers.put(("ended", None))

    @property
    def place(self) -> str:
        return f"process {self.process.pid}"

    def send(self, request: tuple[str, tuple[Any, ...]]) -> None:
        try:
            send(self.requests, request)
        except OSError:
            self.answers.put(("ended", None))

    def receive(self, seconds: float) -> Message:
        try:
            return self.answers.get(timeout=seconds)
        except queue.Empty:
            # A program that the worker started may keep the pipe open.
            if self.process.poll() is not None and self.answers.empty():
                return "ended", None
            raise

    def ending(self) -> str:
        self.process.wait()
        return f"ended with exit status {self.process.returncode}"

    def kill(self) -> None:
        self.process.kill()

    def interrupt(self) -> None:
        self.kill()

    def request_exit(self) -> None:
        with contextlib.suppress(OSError):  # the process is dead, with requests still in the buffer
            self.requests.close()

    def close(self) -> tuple[bool, list[Message]]:
        try:
            self.process.wait(timeout=CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(timeout=CLOSING_SECONDS)
        messages: list[Message] = []
        while not self.answers.empty():
            messages.append(self.answers.get())
        if not self.listener.is_alive():
            self.received.close()
        return self.process.returncode >= 0, messages


def start_process(module: str, index: int, share: str, notices: Notices) -> Worker:
    """Start a worker in a process on this machine; see `StartWorker`."""
    return Worker(PipeChannel(module), index, share, notices)


def send(stream: Any, message: Any) -> None:
    """Write a pickled message. Pickles pass only between a run's own processes, through private pipes; files that are
    loaded hold arrays and JSON."""
    pickle.dump(message, stream, protocol=5)
    stream.flush()


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
        while not self.is_over.wait(transport.BEAT):
            words = current_call(self.columns)
            seconds = seconds + transport.BEAT if words and words == before else 0.0
            before = words
            self.is_reported = seconds >= transport.PATIENCE
            reported = reported if self.is_reported else 0.0
            if seconds - reported >= transport.PATIENCE:
                reported = seconds
                self.say(
                    f"{words}, has not returned for {seconds:.0f} s. If it hangs, press Ctrl-C to interrupt the call, "
                    "save everything up to this iteration, and stop."
                )

    def close(self) -> None:
        """Stop the thread."""
        self.is_over.set()


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
        heartbeat = Heartbeat(server, partial(send, answering))
        server.notices = Notices(partial(notice, heartbeat))
        try:
            answer_all(server, asked, heartbeat)
        finally:
            server.close()
            heartbeat.is_over.set()
            with contextlib.suppress(OSError):
                heartbeat.answer("closed", None)
    # Everything is closed. Tearing down the interpreter would only take time and make libraries print warnings.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def notice(heartbeat: Heartbeat, kind: str, words: str) -> None:
    """Send a notice, or show it on standard error if the main process is gone."""
    try:
        heartbeat.notice(kind, words)
    except OSError:
        with contextlib.suppress(OSError):
            warn(words)


def answer_all(server: Any, requests: Any, heartbeat: Heartbeat) -> None:
    """Answer requests until the stream ends."""
    while True:
        try:
            what, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer_request(server, heartbeat, what, arguments)
        except BrokenPipeError:
            return
