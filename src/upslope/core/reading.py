"""Text files → values, checked; one clear message where a file is missing, damaged or foreign."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from upslope.core.files import MAX_TABLE, plain_file
from upslope.core.messages import readable
from upslope.errors import UpslopeError


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is none; JSON knows no NaN and no Infinity.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def brief(error: BaseException) -> str:
    """What an error says, in one line that can be read."""
    words = " ".join(str(error).split())
    words = readable(words).rstrip(".")
    return words if len(words) <= 200 else words[:200] + "…"


def damaged(path: Path, error: BaseException) -> UpslopeError:
    """A file that cannot be understood."""
    return UpslopeError(
        f"{path} is damaged or not upslope's: {type(error).__name__}: {brief(error)}. Put a copy of it back, or leave "
        "this run out."
    )


def read_text(path: Path, parse: Callable[[str], Any]) -> Any:
    """What `parse` makes of a text file.

    Raises:
        UpslopeError: it is missing, no plain file, absurdly large, or cannot be parsed.
    """
    plain_file(path, MAX_TABLE)
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise damaged(path, error) from error


def checked_rows(text: str) -> list[dict[str, Any]]:
    """A JSON list of objects."""
    rows = parse_json(text)
    if not all(isinstance(row, dict) for row in rows):
        raise TypeError("a row must be an object")
    return rows


def csv_type(names: Sequence[str], text: Mapping[str, str]) -> np.dtype:
    """The type of a row."""
    return np.dtype([(n, text.get(n, "f8" if n == "return" else "i8")) for n in names])


def read_csv(path: Path, names: Sequence[str], text: Mapping[str, str] = MappingProxyType({})) -> np.ndarray:
    """A CSV with a header as a structured array, without a last row that is incomplete; `text` are types of columns
    that hold no numbers."""
    kind = csv_type(names, text)

    def parse(content: str) -> np.ndarray:
        # On other characters in a column of numbers NumPy's parser reads outside its tables, and the process dies.
        if not content.isascii():
            raise ValueError("it holds characters that no table of upslope has")
        if "\n" not in content and ",".join(names).startswith(content):
            return np.zeros(0, kind)  # the disk was full before the first line was whole
        header, *rows = content.split("\n")[:-1] or [""]
        if header != ",".join(names):
            raise ValueError(f"its first line must be {','.join(names)}")
        return np.loadtxt(rows, delimiter=",", dtype=kind, ndmin=1, comments=None) if rows else np.zeros(0, kind)

    return read_text(path, parse)
