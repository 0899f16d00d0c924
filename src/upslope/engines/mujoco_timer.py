"""MuJoCo's stopwatch: from its version 4 on, its Python package asks for the time dozens of times in a step.

It fills in `data.timer`, which no environment of Gymnasium's reads, and takes a tenth of a step of HalfCheetah's.
"""

import contextlib
import ctypes
import sys
from pathlib import Path


def stop_stopwatch() -> None:
    """Stop it in this process, if MuJoCo is loaded and nobody has set a clock of their own.

    Without a clock, MuJoCo's functions measure nothing: that is the C library's own default.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or mujoco.get_mjcb_time() is not None:
        return
    for library in Path(str(mujoco.__file__)).parent.glob("libmujoco.*"):
        with contextlib.suppress(OSError, ValueError):  # another build: then it goes on measuring
            ctypes.c_void_p.in_dll(ctypes.CDLL(str(library)), "mjcb_time").value = None
