"""Stop MuJoCo's timer: since version 4, its Python package reads the clock dozens of times per step.

The timer fills `data.timer`, which no Gymnasium environment reads, and takes a tenth of a HalfCheetah step.
"""

import contextlib
import ctypes
import sys
from pathlib import Path


def stop_stopwatch() -> None:
    """Stop the timer in this process, if MuJoCo is loaded and no custom clock is set.

    Without a clock, MuJoCo's functions measure nothing, which is the C library's own default.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mjcb_time() is not None:
        return
    for library in Path(str(mujoco.__file__)).parent.glob("libmujoco.*"):
        with contextlib.suppress(OSError, ValueError):  # another build: the timer keeps running
            ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "mjcb_time").value = None
