"""Start upslope's own Python processes without importing JAX, which small processes do not need."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"
"""Python's environment variable that, like the flag -P, keeps the current folder off the module search path."""
CURRENT_FOLDER_LAST = """
here = os.path.realpath(os.curdir)
is_here = lambda entry: not entry or os.path.realpath(entry) == here
sys.path[:] = sorted(path, key=is_here)
"""
"""Code that runs first in a child process, given the main process's `path`, so that no file in the current folder can
shadow one of Python's own modules."""


@contextmanager
def current_folder_ignored() -> Iterator[None]:
    """Within this block, Python processes started by other code, such as `multiprocessing`, do not search the current
    folder first for modules."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
