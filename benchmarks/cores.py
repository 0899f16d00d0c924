"""Where a benchmark runs."""

import os
from typing import Any


def stay_on_one_core(number: int = 0) -> None:
    """Of the cores that this process may use; before JAX's first computation, which starts its threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[number]})


def stay_on_a_core_of_ones_own(numbers: Any) -> None:
    """The next of a queue of numbers."""
    stay_on_one_core(numbers.get())
