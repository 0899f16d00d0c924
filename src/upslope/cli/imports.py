"""Import many modules quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without Python's garbage collector, which would search the new modules again and again for garbage that is
    not there; afterwards it leaves them alone."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
