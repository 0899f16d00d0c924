"""How commands answer: tables for a person, JSON for a program."""

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any

PIPE_WIDTH = 160
"""Columns of a table that nobody's terminal limits."""


def answer(as_json: bool, found: dict[str, Any] | list[dict[str, Any]], views: Iterable[Any]) -> None:
    """Print what was found."""
    if as_json:
        from upslope.core.storage import plain

        print(json.dumps(plain(found), indent=2, ensure_ascii=False, allow_nan=False))
        return
    for view in views:
        console().print(view)


def console() -> Any:
    """Where tables go: as wide as the terminal, and wide enough for every name where there is none."""
    from rich.console import Console

    class Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise  # for whoever called; rich would end the process

    return Pipe(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH)
