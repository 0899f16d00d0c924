"""Find the source code of a dotted name, with its file and line numbers."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
from refresh_links import lines_of

SOURCE = Path(__file__).resolve().parents[2] / "src"


def block(name: str, language: str = "en") -> str:
    """Return a fenced block with the source code of `upslope.module.Name`, including decorators."""
    path, symbol = split(name)
    lines = lines_of(path, symbol)
    if lines is None:
        raise LookupError(f"{path.relative_to(SOURCE)} defines no {symbol}")
    first, last = lines
    code = textwrap.dedent("\n".join(path.read_text("utf-8").splitlines()[first - 1 : last]))
    title = f"{path.relative_to(SOURCE)} · {symbol}"
    return f'~~~~python title="{title}" linenums="{first}"\n{code}\n~~~~\n'


def split(name: str) -> tuple[Path, str]:
    """Split a dotted name into the path of the file and the name inside the file."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        path = SOURCE.joinpath(*parts[:length]).with_suffix(".py")
        if path.is_file():
            return path, ".".join(parts[length:])
    raise LookupError(f"no file in src defines {name}")
