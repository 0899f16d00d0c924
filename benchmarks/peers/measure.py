"""Functions that all measurements share. They need only Python's standard library."""

import json
import resource
import subprocess
import sys
from typing import Any


def at_once(processes: int, *command: str) -> list[dict[str, Any]]:
    """Run a measurement in this number of processes simultaneously, and return their results."""
    running = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    return [json.loads(p.communicate()[0].splitlines()[-1]) for p in running]


def peak_memory() -> float:
    """Return the peak resident memory in MB of this process, or of a process that it waited for."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(w).ru_maxrss for w in who) / 1024, 1)
