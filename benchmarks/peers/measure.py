"""What every measurement shares; needs nothing but Python."""

import resource


def peak_memory() -> float:
    """The largest resident memory of this process or of one that it waited for, in MB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(w).ru_maxrss for w in who) / 1024, 1)
