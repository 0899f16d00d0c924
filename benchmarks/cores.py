"""Where a benchmark runs."""

import os
from typing import Any


def cores() -> list[int]:
    """The numbers of the cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def stay_on_one_core() -> None:
    """Of the cores that this process may use; before JAX's first computation, which starts its threads."""
    for core in cores()[:1]:
        os.sched_setaffinity(0, {core})


def stay_on_a_core_of_ones_own(free: Any) -> None:
    """The next in a queue of cores."""
    if not free.empty():
        os.sched_setaffinity(0, {free.get()})
