"""Run one process per tracker, which follows the run directory as it grows.

Training starts the process, and closes a pipe when training ends. No data are passed to it, so training never waits and
no queue can fill up. A tracker that fails, hangs or dies affects only its own process.
"""

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upslope.core.child_processes import CURRENT_FOLDER_LAST
from upslope.core.files import safe_path
from upslope.core.messages import shell, told
from upslope.errors import UpslopeError
from upslope.runs.tracking.sending import Sender
from upslope.runs.tracking.tracker import keep_private

PAUSE = 1.0
"""Seconds between checks of the run directory."""
PATIENCE = 15.0
"""Seconds without progress after which an unfinished tracker is stopped once training has ended."""
QUIET_WAIT = 1.0
"""Seconds to wait after training before the user is told which trackers have not finished."""
ORPHAN_SECONDS = 600.0
"""Maximum number of seconds that the process may take to finish after training has ended."""
NICENESS = 10
"""The niceness of the process, so that training has priority on the processor."""
BOOTSTRAP = f"""
import json, os, sys
over, words, path, arguments = json.loads(sys.argv[1])
os.set_inheritable(over, False)
os.set_inheritable(words, False)
{CURRENT_FOLDER_LAST}
sys.argv[:] = ["upslope"]
from upslope.runs.tracking.process import serve
sys.path[:] = path
serve(over, words, *arguments)
"""
"""The code that starts the process."""


class TrackerProcess:
    """The process that sends a run to one tracker."""

    def __init__(self, run: Path, name: str, project: str | None):
        self.run, self.name = run, name
        self.words: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.is_sent = self.is_told = False
        self.where: list[str] = []
        """Lines, not yet shown to the user, that say where the tracker shows the run."""
        safe_path(run, run / "tracking", is_folder=True).mkdir(exist_ok=True)
        log = safe_path(run, run / "tracking" / "output.log")
        (over, mine), (theirs, words) = os.pipe(), os.pipe()
        self.over, self.received = mine, os.fdopen(theirs, "rb")
        arguments = json.dumps([over, words, [p for p in sys.path if isinstance(p, str)], [str(run), name, project]])
        try:
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-c", BOOTSTRAP, arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=(over, words),
                    start_new_session=True,  # Ctrl-C stops training, which then ends this process
                )
        except BaseException:
            os.close(self.over)
            self.received.close()
            raise
        finally:
            os.close(over)
            os.close(words)
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        """Queue the process's messages, each of which is a line of JSON."""
        with contextlib.suppress(OSError, ValueError), self.received:
            for line in self.received:
                self.words.put(json.loads(line))

    def news(self, wait: float = 0.0) -> list[str] | None:
        """Return new lines for the user since the last call, or None if the process sent nothing within `wait`
        seconds."""
        words: list[dict[str, Any]] = []
        with contextlib.suppress(queue.Empty):
            words.append(self.words.get(timeout=wait) if wait else self.words.get_nowait())
            while True:
                words.append(self.words.get_nowait())
        self.where += [f"{self.name}: {word['where']}" for word in words if "where" in word]
        lines = [self.failure(str(word["failed"])) for word in words if "failed" in word]
        self.is_sent |= any("sent" in word for word in words)
        if self.process.poll() and self.is_over and not self.is_told and not self.is_sent:
            lines.append(self.failure(f"its process ended with exit status {self.process.returncode}"))
        return lines if words or lines else None

    @property
    def is_over(self) -> bool:
        """Whether the process has ended and all of its messages have been read."""
        return self.process.poll() is not None and not self.listener.is_alive() and self.words.empty()

    def failure(self, why: str) -> str:
        """Return the message that tracking failed, and record that the user has been told."""
        self.is_told = True
        return f"{self.name} failed: {why}. The run is not affected. Send the rest later: {self.command}"

    @property
    def command(self) -> str:
        """The command that sends the rest."""
        return shell("upslope", "track", self.run, "--to", self.name)

    def request_end(self) -> None:
        """Tell the process that no more rows will come."""
        if self.over >= 0:
            os.close(self.over)
            self.over = -1

    def kill(self) -> None:
        """Kill the process and those that it started."""
        with contextlib.suppress(OSError):  # no process of the group is left
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Tracking:
    """All trackers of a training session."""

    def __init__(
        self,
        run: Path,
        names: Sequence[str],
        project: str | None,
        say: Callable[[str], None],
        inform: Callable[[str], None] = lambda line: None,
    ):
        """`say` reports problems; `inform` reports what a quiet display omits."""
        self.say, self.inform = say, inform
        self.processes: list[TrackerProcess] = []
        for name in names:
            try:
                self.processes.append(TrackerProcess(run, name, project))
            except (OSError, UpslopeError) as error:
                say(f"{name} could not be started: {error}. The run is not affected.")

    def tell(self) -> None:
        """Show the messages that the processes have sent since the last call, without waiting."""
        for one in self.processes:
            self.tell_of(one)

    def tell_of(self, one: TrackerProcess, wait: float = 0.0) -> bool:
        """Show a process's messages, and return whether it sent any within `wait` seconds."""
        lines = one.news(wait)
        while one.where:
            self.inform(one.where.pop(0))
        for line in lines or ():
            self.say(line)
        return lines is not None

    def close(self) -> None:
        """Wait until the processes have sent the remaining data. A process that makes no progress is stopped, and
        Ctrl-C ends the wait."""
        for one in self.processes:
            one.request_end()
        with contextlib.suppress(BrokenPipeError):  # the reader of the output has exited; the run is saved
            self.wait()

    def wait(self) -> None:
        """Wait for the processes to end."""
        started = time.monotonic()
        heard = dict.fromkeys(self.processes, started)
        is_announced, given_up = False, set()
        try:
            while waiting := [one for one in self.processes if not one.is_over and one not in given_up]:
                for one in waiting:
                    if self.tell_of(one, wait=0.1):
                        heard[one] = time.monotonic()
                    if time.monotonic() - heard[one] > PATIENCE:
                        given_up.add(one)  # its child processes may still hold its pipe
                        self.give_up(one, f"no response for {PATIENCE:.0f} s after training, so it was stopped")
                if not is_announced and time.monotonic() - started > QUIET_WAIT:
                    is_announced = True
                    names = ", ".join(one.name for one in waiting)
                    self.inform(f"waiting for {names} to take the last rows; Ctrl-C leaves them for `upslope track`")
            self.tell()  # read the pipe of a process that has just ended
        except KeyboardInterrupt:
            for one in self.processes:
                self.give_up(one, "it was stopped by Ctrl-C before everything was sent")

    def give_up(self, one: TrackerProcess, why: str) -> None:
        """Kill a process, and tell the user if it has not sent everything."""
        is_incomplete = one.process.poll() is None and not (one.is_sent or one.is_told)
        one.kill()
        if is_incomplete:
            self.say(one.failure(why))


def serve(over: int, words: int, run: str, name: str, project: str | None) -> None:
    """Run in the tracker's process: send rows until training is over, then the remaining rows and the results."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)  # training ends this process after the last rows
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    keep_private()

    def say(**word: Any) -> None:
        with contextlib.suppress(OSError):  # training has exited
            os.write(words, json.dumps(word).encode() + b"\n")

    status = 0
    try:
        follow(Sender(run, name, project), over, say)
    except BaseException as error:
        status = 1
        say(failed=str(error) if isinstance(error, UpslopeError) else told(error))
    os.close(words)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if status:
        os._exit(status)  # exit handlers of a broken tracker may hang


def follow(sender: Sender, over: int, say: Callable[..., None]) -> None:
    """Send rows as they appear."""

    def pause() -> bool:
        """Wait briefly, and return whether training is over."""
        return bool(select.select([over], [], [], PAUSE)[0])

    def wait_for_another() -> bool:
        return not pause()

    with sender.memory.locked(wait_for_another):
        sender.open()
        say(where=sender.memory.known.get("where") or "connected")
        is_over = False
        while not is_over:
            is_over = pause()
            if is_over:
                leave_in_the_end()
            sender.send(lambda rows: say(rows=rows))
        say(rows=0)
        sender.close()
        say(sent=True)


def leave_in_the_end() -> None:
    """Schedule the end of this process, in case its tracker hangs."""
    timer = threading.Timer(ORPHAN_SECONDS, lambda: os._exit(1))
    timer.daemon = True
    timer.start()
