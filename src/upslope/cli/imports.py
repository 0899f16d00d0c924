"""Import many modules quickly."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable Python's garbage collector during imports, because it would repeatedly scan the new modules and find no
    garbage.

    Afterwards, the collector ignores these modules."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
