"""What is needed to start our own Python processes without importing JAX, which a small process does not need."""

CURRENT_FOLDER_LAST = """
here = os.path.realpath(os.curdir)
is_here = lambda entry: not entry or os.path.realpath(entry) == here
sys.path[:] = sorted(path, key=is_here)
"""
"""Part of the code that starts a process, given the main process's `path`: no file in the current folder may shadow
one of Python's own modules."""
