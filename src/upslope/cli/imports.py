"""Import many modules quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without Python's garbage collector, which would scan the new modules repeatedly and find no garbage.

    Afterwards, the collector ignores these modules."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
