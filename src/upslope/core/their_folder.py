"""Let environments change the current folder without affecting the files that upslope reads and writes."""

import os
from contextlib import suppress
from pathlib import Path


class TheirFolder:
    """A reusable context manager for running the code of environments, which keep a current folder of their own.

    upslope's folder is restored at the end of each block.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.ours = ""
        self.theirs: str | None = None
        """The folder to which the environments changed; None if they did not."""

    def __enter__(self) -> None:
        self.depth += 1
        if self.depth == 1:
            self.ours = here()
            if self.theirs is not None:
                go(self.theirs)

    def __exit__(self, *exception: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            now = here()
            self.theirs = None if now == self.ours else now
            if self.theirs is not None:
                go(self.ours)


def here() -> str:
    """The current folder; empty if it has been removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def go(folder: str) -> None:
    """Change to a folder, unless it no longer exists."""
    with suppress(OSError):
        os.chdir(folder)
