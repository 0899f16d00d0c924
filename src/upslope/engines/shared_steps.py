"""Step a worker's environments through shared memory, for steps that take no longer than passing a message.

Neither side blocks in the operating system. The worker polls the memory for a while after each step, and the main
process polls it until the answer arrives. If that takes too long or anything goes wrong, they use the worker's channel,
which can wait and can report a worker that hangs or has ended.

This requires that each process sees the other's writes in the order in which they were made, as on x86 processors.
"""

import math
import mmap
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

from upslope.engines.transport import Heartbeat, Worker
from upslope.errors import STOPS

SPIN = 0.3e-3
"""Seconds for which a worker polls the memory for the next step after each step."""
MARGIN = 0.05e-3
"""If fewer than this many seconds of polling remain, the worker is woken anyway."""
PATIENCE = 1e-3
"""Seconds for which the main process polls for an answer before it blocks."""
CHECKS = 20
"""Number of times to poll the memory before checking the pipe and the clock."""
ALIGNMENT = 64
"""Each array begins at a multiple of this many bytes, the size of a processor's cache line."""
ASKED, ANSWERED, FAILED = range(3)
"""Indices of the control numbers: steps requested, steps answered, and whether the last step failed."""
SPINS_UNTIL = 0
"""Index of the time at which the worker stops polling."""
Shapes = list[tuple[str, tuple[int, ...], str]]
"""The name, shape and type of each shared array."""


def is_possible() -> bool:
    """Return whether two processes on this machine can share memory in this way."""
    return sys.platform == "linux" and platform.machine().lower() in ("x86_64", "amd64")


class StepMemory:
    """The arrays of a step that two processes share, and the control numbers."""

    def __init__(self, file: int, shapes: Shapes):
        self.memory = mmap.mmap(file, memory_size(shapes))
        view = memoryview(self.memory)
        self.control, self.clock = view[:ALIGNMENT].cast("Q"), view[ALIGNMENT : 2 * ALIGNMENT].cast("d")
        self.arrays: dict[str, np.ndarray] = {}
        place = 2 * ALIGNMENT
        for name, shape, kind in shapes:
            self.arrays[name] = np.frombuffer(self.memory, kind, math.prod(shape), place).reshape(shape)
            place += aligned(self.arrays[name].nbytes)


def aligned(size: int) -> int:
    """Return the size rounded up to whole cache lines."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def memory_size(shapes: Shapes) -> int:
    """Return the size in bytes of the memory that the arrays need."""
    return 2 * ALIGNMENT + sum(aligned(math.prod(shape) * np.dtype(kind).itemsize) for _, shape, kind in shapes)


class SharedSteps:
    """The main process's end of the shared memory."""

    def __init__(self, worker: Worker, arrays: dict[str, np.ndarray], begins: bool, say: Callable[[str], None]):
        """`arrays` have the shapes and types of a step's arrays. With `begins`, a new episode begins whenever one
        ends.

        Raises:
            OSError: there is not enough space for the memory.
        """
        self.worker, self.count, self.is_woken = worker, 0, False
        shapes = [(name, x.shape, x.dtype.str) for name, x in arrays.items()]
        shared = Path("/dev/shm")
        with tempfile.NamedTemporaryFile(dir=shared if shared.is_dir() else None) as file:
            file.write(bytes(memory_size(shapes)))  # if the disk is full, this fails now and not in a later step
            file.flush()
            self.memory = StepMemory(file.fileno(), shapes)
            worker.ask("share", file.name, shapes, begins)
            worker.answer(say)

    def ask(self, action: np.ndarray) -> None:
        """Request a step of all the worker's environments with the given actions."""
        memory = self.memory
        memory.arrays["action"][:] = action
        self.count += 1
        memory.control[ASKED] = self.count
        self.is_woken = perf_counter() + MARGIN > memory.clock[SPINS_UNTIL]
        if self.is_woken:
            self.worker.ask("wake")

    def answer(self, say: Callable[[str], None]) -> dict[str, np.ndarray]:
        """Wait for the step, and return its arrays, which the next step overwrites."""
        control, until = self.memory.control, perf_counter() + PATIENCE
        if not self.is_woken:
            while control[ANSWERED] != self.count:
                if perf_counter() > until:
                    self.worker.ask("wake")
                    self.is_woken = True
                    break
        if self.is_woken:
            self.worker.answer(say)
        if control[FAILED]:
            self.worker.ask("tell_failure")
            self.worker.answer(say)
        return self.memory.arrays


class StepServer:
    """The worker's end of the shared memory."""

    def __init__(self, path: str, shapes: Shapes, step: Callable[[np.ndarray], dict[str, np.ndarray]]):
        """`step` takes the actions and returns the arrays to share."""
        with Path(path).open("r+b") as file:
            self.memory = StepMemory(file.fileno(), shapes)
        self.step, self.error = step, RuntimeError("No step has failed.")

    def serve(self, heartbeat: Heartbeat, has_request: Callable[[], bool]) -> None:
        """Answer steps until the channel has a request, or until no step has been requested for a while."""
        control, clock = self.memory.control, self.memory.clock
        clock[SPINS_UNTIL] = perf_counter() + SPIN
        while True:
            for _ in range(CHECKS):
                if control[ASKED] != control[ANSWERED]:
                    heartbeat.begin()
                    self.answer()
                    heartbeat.is_busy = False
                    break
            else:
                if has_request() or perf_counter() > clock[SPINS_UNTIL]:
                    return

    def answer(self) -> None:
        """Take the requested step, unless it has already been taken."""
        memory = self.memory
        if memory.control[ASKED] == memory.control[ANSWERED]:
            return
        try:
            found = self.step(memory.arrays["action"].copy())
        except STOPS:
            raise
        except BaseException as error:
            self.error, memory.control[FAILED] = error, 1
        else:
            for name, value in found.items():
                memory.arrays[name][:] = value
        memory.clock[SPINS_UNTIL] = perf_counter() + SPIN
        memory.control[ANSWERED] = memory.control[ASKED]
