"""Where a benchmark runs."""

import os


def stay_on_one_core() -> None:
    """Of the cores that this process may use; before JAX's first computation, which starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
