"""Run workers as processes on this machine, which exchange requests and answers through pipes.

A worker runs the `Server` of one of upslope's modules. Unlike a worker of Python's process pools, it does not import
the user's script again. Its pipes are private: they are not standard streams, and programs that an environment starts
do not inherit them.
"""

import atexit
import contextlib
import gc
import json
import os
import pickle
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter, sleep
from typing import Any

from upslope.core.child_processes import CURRENT_FOLDER_LAST
from upslope.core.messages import warn
from upslope.engines import transport
from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.engines.notices import Notices
from upslope.engines.transport import CLOSING_SECONDS, Heartbeat, Message, Worker, answer_request, current_call
from upslope.errors import UpslopeError
from upslope.learning.devices import configure_jax, num_cores, one_blas_thread

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
"""The code that starts a worker. After importing upslope, it uses the search path of the main process."""
HEADER = struct.Struct("=Q")
"""The format of the length that precedes each message."""
READ_BYTES = 1 << 20
"""Maximum number of bytes per read."""


class MessageReader:
    """Reads the messages of one pipe, each of which is a pickle preceded by its length.

    Pickles pass only between the processes of a run, through private pipes. Loaded files contain only arrays and
    JSON."""

    def __init__(self, pipe: int):
        os.set_blocking(pipe, False)
        self.pipe, self.buffer = pipe, bytearray()
        self.poll = select.poll()
        self.poll.register(pipe, select.POLLIN)

    def read(self, seconds: float | None = None) -> Any:
        """Return the next message.

        Raises:
            queue.Empty: no message arrived within that time.
            EOFError: the pipe has ended.
        """
        while (size := self.complete()) is None:
            try:
                data = os.read(self.pipe, READ_BYTES)
            except BlockingIOError:
                if not self.poll.poll(None if seconds is None else 1000 * seconds):
                    raise queue.Empty from None
                continue
            if not data:
                raise EOFError
            self.buffer += data
        with memoryview(self.buffer) as view:
            message = pickle.loads(view[HEADER.size : size])
        del self.buffer[:size]
        return message

    def is_ready(self) -> bool:
        """Return whether `read` can return without waiting."""
        return bool(self.buffer) or bool(self.poll.poll(0))

    def complete(self) -> int | None:
        """Return the size of the first message in the buffer, including its header, or None if the message is
        incomplete."""
        if len(self.buffer) < HEADER.size:
            return None
        size = HEADER.size + HEADER.unpack_from(self.buffer)[0]
        return size if len(self.buffer) >= size else None


def send(stream: Any, message: Any) -> None:
    """Write a message for a `MessageReader`."""
    data = pickle.dumps(message, protocol=5)
    stream.write(HEADER.pack(len(data)))
    stream.write(data)
    stream.flush()


class PipeChannel:
    """Two pipes to a process on this machine."""

    error = UpslopeError
    waiting_for = "it does not respond"

    def __init__(self, module: str):
        # Only one process may hold an accelerator's memory. XLA gets the same number of threads as in this process,
        # since it divides long sums of products with a narrow result among them, and the last bits of the result depend
        # on the division.
        environment = os.environ | {"NPROC": str(num_cores()), "JAX_PLATFORMS": "cpu"}
        (requests, mine), (theirs, answers) = os.pipe(), os.pipe()
        self.requests, self.answers = os.fdopen(mine, "wb"), MessageReader(theirs)
        self.is_broken = False
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
            os.close(theirs)
            raise
        finally:
            os.close(requests)
            os.close(answers)

    @property
    def place(self) -> str:
        return f"process {self.process.pid}"

    def send(self, request: tuple[str, tuple[Any, ...]]) -> None:
        try:
            send(self.requests, request)
        except OSError:
            self.is_broken = True

    def receive(self, seconds: float) -> Message:
        try:
            return self.answers.read(0.0 if self.is_broken else seconds)
        except queue.Empty:
            # A program started by the worker may keep the pipe open.
            if self.is_broken or self.process.poll() is not None:
                return "ended", None
            raise
        except Exception:  # the pipe has ended, or a dying process left an incomplete message
            return "ended", None

    def ending(self) -> str:
        self.process.wait()
        return f"ended with exit status {self.process.returncode}"

    def kill(self) -> None:
        self.process.kill()

    def interrupt(self) -> None:
        self.kill()

    def request_exit(self) -> None:
        with contextlib.suppress(OSError):  # the process may have died with requests still in the buffer
            self.requests.close()

    def close(self) -> tuple[bool, list[Message]]:
        messages: list[Message] = []
        until = perf_counter() + CLOSING_SECONDS
        while self.process.poll() is None:
            if perf_counter() > until:
                self.process.kill()
                self.process.wait()
            self.read_into(messages, 0.02)
        self.read_into(messages, 0.0)
        if self.answers.pipe >= 0:
            os.close(self.answers.pipe)
            self.answers.pipe = -1
        return self.process.returncode >= 0, messages

    def read_into(self, messages: list[Message], seconds: float) -> None:
        """Read messages until none arrives for the given number of seconds."""
        try:
            while True:
                messages.append(self.answers.read(seconds))
        except queue.Empty:
            pass
        except Exception:  # the pipe has ended, or a dying process left an incomplete message
            sleep(seconds)


def start_process(module: str, index: int, share: str, notices: Notices) -> Worker:
    """Start a worker in a process on this machine; see `StartWorker`."""
    return Worker(PipeChannel(module), index, share, notices)


class LocalChannel:
    """Answers requests in this process when the caller waits for the answer."""

    error = UpslopeError
    place = "this process"
    waiting_for = ""

    def __init__(self, server: Any):
        self.server = server
        self.request: tuple[str, tuple[Any, ...]] | None = None

    def send(self, request: tuple[str, tuple[Any, ...]]) -> None:
        self.request = request

    def receive(self, seconds: float) -> Message:
        if self.request is None:  # the previous answer was interrupted
            return "ended", None
        (what, arguments), self.request = self.request, None
        return "done", getattr(self.server, what)(*arguments)

    def ending(self) -> str:
        return "ended"

    def kill(self) -> None:
        """Do nothing, since only the user can interrupt this process."""

    def interrupt(self) -> None:
        """Do nothing, as in `kill`."""

    def request_exit(self) -> None:
        self.server.close()

    def close(self) -> tuple[bool, list[Message]]:
        return True, []


class HangMonitor:
    """Reports an environment of this process that is stuck in a call. Only the user can interrupt it."""

    def __init__(self, columns: Any, say: Callable[[str], None]):
        self.columns, self.say = columns, say
        self.is_over = threading.Event()
        self.is_reported = False
        threading.Thread(target=self.watch, daemon=True).start()

    @property
    def hangs(self) -> bool:
        """Whether an environment was reported and is still in the same call. It may have returned since the last
        beat."""
        return self.is_reported and self.columns.row is not None

    def watch(self) -> None:
        """Check once per beat. As with workers, time is counted in beats."""
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

    Call this after a worker's environments have been created.
    """
    stop_stopwatch()
    one_blas_thread()  # again, for libraries that the environments loaded
    # The objects created so far live as long as the process, so the collector does not need to scan them.
    gc.freeze()


def serve(server: Any, requests: int, answers: int, path: Sequence[str]) -> None:
    """Run in the worker: answer requests with the server's methods until the main process has exited, and then close.

    `requests` and `answers` are file descriptors; `path` is the main process's search path.
    """
    sys.path[:] = path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    # Install a handler that does nothing. With SIG_IGN instead, child programs would inherit it and could not be
    # terminated.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    os.dup2(2, 1)  # send an environment's output to standard error
    configure_jax(on_host=True)
    one_blas_thread()
    asked = MessageReader(requests)
    with contextlib.suppress(OSError), os.fdopen(answers, "wb") as answering:
        heartbeat = Heartbeat(server, partial(send, answering))
        server.notices = Notices(partial(notice, heartbeat))
        try:
            answer_all(server, asked, heartbeat)
        finally:
            server.close()
            heartbeat.is_over.set()
            with contextlib.suppress(OSError):
                heartbeat.answer("closed", None)
    # Everything is closed, and shutting down the interpreter would only take time and make libraries print warnings.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(0)


def notice(heartbeat: Heartbeat, kind: str, words: str) -> None:
    """Send a notice, or show it on standard error if the main process has exited."""
    try:
        heartbeat.notice(kind, words)
    except OSError:
        with contextlib.suppress(OSError):
            warn(words)


def answer_all(server: Any, requests: MessageReader, heartbeat: Heartbeat) -> None:
    """Answer requests until the pipe is closed. A server may do other work in between."""
    between = getattr(server, "between_requests", None)
    while True:
        if between is not None:
            between(heartbeat, requests.is_ready)
        try:
            what, arguments = requests.read()
        except EOFError:
            return
        try:
            answer_request(server, heartbeat, what, arguments)
        except BrokenPipeError:
            return
