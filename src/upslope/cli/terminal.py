"""How commands answer: tables for a person, JSON for a program."""

import json
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from upslope.core.messages import readable

PIPE_WIDTH = 160
"""Columns of a table that nobody's terminal limits."""


def answer(as_json: bool, found: dict[str, Any] | list[dict[str, Any]], views: Iterable[Any]) -> None:
    """Print what was found."""
    if as_json:
        from upslope.core.storage import plain

        text = json.dumps(plain(found), indent=2, ensure_ascii=False, allow_nan=False)
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))
        return
    for view in views:
        console().print(view)


def say(text: str, file: Any = None) -> None:
    """Print a line that holds names of files or settings, which may hold anything."""
    print(readable(text), file=file)


def console() -> Any:
    """Where tables go: as wide as the terminal, and wide enough for every name where there is none."""
    from upslope.core.consoles import PlainTextConsole

    class Pipe(PlainTextConsole):
        def on_broken_pipe(self) -> None:
            raise  # for whoever called; rich would end the process

    return Pipe(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH)
