"""Stop MuJoCo's timer, because MuJoCo's Python package has read the clock dozens of times per step since version 4.

The timer fills `data.timer`, which no Gymnasium environment reads, and takes a tenth of a HalfCheetah step.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path


def stop_stopwatch() -> Callable[[], None]:
    """Stop the timer in this process, if MuJoCo is loaded and no custom clock is set. Return a function that starts it
    again.

    Without a clock, MuJoCo's functions do not measure time, which is the default in the C library.
    """
    mujoco = sys.modules.get("mujoco")
    stopped: list[tuple[ctypes.c_void_p, int | None]] = []
    if mujoco is not None and mujoco.get_mjcb_time() is None:
        for library in Path(str(mujoco.__file__)).parent.glob("libmujoco.*"):
            with contextlib.suppress(OSError, ValueError):  # in another build, the timer keeps running
                clock = ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "mjcb_time")
                stopped.append((clock, clock.value))
                clock.value = None

    def start_again() -> None:
        for clock, function in stopped:
            clock.value = function

    return start_again
