"""Show the `--help` output of every command."""

from __future__ import annotations

import contextlib
import io
import os
import re
from unittest import mock

from upslope.cli import main as cli

COLUMNS = "100"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def all_commands(_: str, language: str = "en") -> str:
    """Return one section with the help text of each command."""
    return "\n".join(f"## upslope {name}\n\n```text\n{help_of(name)}\n```\n" for name in cli.COMMANDS)


def help_of(name: str) -> str:
    """Return what `upslope NAME --help` prints on a terminal with a fixed width."""
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": COLUMNS, "TERM": "dumb", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        cli.run([name, "--help"])
    text = ESCAPES.sub("", printed.getvalue()).strip()
    if not text:
        raise LookupError(f"upslope {name} --help prints nothing")
    return text
