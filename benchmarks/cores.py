"""Choose the CPU cores on which a benchmark runs."""

import os
from typing import Any


def stay_on_one_core(number: int = 0) -> None:
    """Pin this process to one of its cores. Call it before JAX's first computation, which starts JAX's threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})


def stay_on_next_core(numbers: Any) -> None:
    """Pin a worker process of a pool to the next core in a queue."""
    stay_on_one_core(numbers.get())
