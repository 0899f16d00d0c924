"""Start upslope's own Python processes without importing JAX, which small processes do not need."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"
"""Python's environment variable that keeps the current folder off the search path, like its flag -P."""
CURRENT_FOLDER_LAST = """
here = os.path.realpath(os.curdir)
is_here = lambda entry: not entry or os.path.realpath(entry) == here
sys.path[:] = sorted(path, key=is_here)
"""
"""Part of the code that starts a process, given the main process's `path`: no file in the current folder may shadow
one of Python's own modules."""


@contextmanager
def current_folder_ignored() -> Iterator[None]:
    """Keep Python processes that other code, such as `multiprocessing`, starts in the meantime from looking for
    modules in the current folder first."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
