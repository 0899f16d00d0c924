"""Environments may change the current folder; what upslope reads and writes does not depend on it."""

import os
from contextlib import suppress
from pathlib import Path


class TheirFolder:
    """A `with` block, to be entered repeatedly, for the code of environments: they keep a current folder of their own,
    and upslope's is restored at the end."""

    def __init__(self) -> None:
        self.depth = 0
        self.ours = ""
        self.theirs: str | None = None
        """The folder that they changed to; None if they did not."""

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
    """The current folder; empty if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def go(folder: str) -> None:
    """Change to a folder, unless it is gone."""
    with suppress(OSError):
        os.chdir(folder)
