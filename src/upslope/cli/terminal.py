"""Output of the commands: tables or JSON."""

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from upslope.core.messages import readable

PIPE_WIDTH = 160
"""Width of tables in output that does not go to a terminal."""


@contextmanager
def only_results(as_json: bool) -> Iterator[None]:
    """With `as_json`, redirect everything that environments and libraries print to standard error, so that the output
    is only JSON."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        output = os.dup(1)
        try:
            os.dup2(2, 1)  # for C libraries and programs that an environment starts
            yield
        finally:
            os.dup2(output, 1)
            os.close(output)


def answer(as_json: bool, found: dict[str, Any] | list[dict[str, Any]], views: Iterable[Any]) -> None:
    """Print the results as JSON, or as tables and text."""
    if as_json:
        from upslope.core.storage import plain

        text = json.dumps(plain(found), indent=2, ensure_ascii=False, allow_nan=False)
        print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))
        return
    for view in views:
        console().print(view)


def say(text: str, file: Any = None) -> None:
    """Print a line, escaping control characters, since names of files and settings may contain them."""
    print(readable(text), file=file)


def table(title: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]], **options: Any) -> Any:
    """Create a table with a left-aligned title. Columns whose name starts with > are right-aligned."""
    from rich.table import Table

    result = Table(title=title, title_justify="left", **options)
    for column in columns:
        result.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result


def console() -> Any:
    """Create the console for tables, as wide as the terminal, or `PIPE_WIDTH` wide without one."""
    from upslope.core.consoles import PlainTextConsole

    class Pipe(PlainTextConsole):
        def on_broken_pipe(self) -> None:
            raise  # let the caller handle it; rich would end the process

    return Pipe(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH)
