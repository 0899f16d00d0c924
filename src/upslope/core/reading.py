"""Read and check text files, with one clear message if a file is missing, damaged or foreign."""

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
    """Parse a JSON text.

    Raises:
        ValueError: the text is not strict JSON, which has no NaN or Infinity.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def brief(error: BaseException) -> str:
    """An error's message, on one printable line of bounded length."""
    words = " ".join(str(error).split())
    words = readable(words).rstrip(".")
    return words if len(words) <= 200 else words[:200] + "…"


def damaged(path: Path, error: BaseException) -> UpslopeError:
    """The error for a file that cannot be parsed."""
    return UpslopeError(
        f"{path} is damaged or was not written by upslope: {type(error).__name__}: {brief(error)}. Restore it "
        "from a copy, or leave this run out."
    )


def read_text(path: Path, parse: Callable[[str], Any]) -> Any:
    """Read a text file and parse it with `parse`.

    Raises:
        UpslopeError: the file is missing, not a plain file, too large, or cannot be parsed.
    """
    plain_file(path, MAX_TABLE)
    try:
        return parse(path.read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise damaged(path, error) from error


def checked_rows(text: str) -> list[dict[str, Any]]:
    """Parse a JSON list of objects."""
    rows = parse_json(text)
    if not all(isinstance(row, dict) for row in rows):
        raise TypeError("a row must be an object")
    return rows


def csv_type(names: Sequence[str], text: Mapping[str, str]) -> np.dtype:
    """The structured dtype of a row; `text` maps column names to the dtypes of text columns."""
    return np.dtype([(n, text.get(n, "f8" if n == "return" or "/" in n else "i8")) for n in names])


def read_csv(path: Path, names: Sequence[str], text: Mapping[str, str] = MappingProxyType({})) -> np.ndarray:
    """Read a CSV file with a header into a structured array, dropping an incomplete last row.

    `text` maps the names of non-numeric columns to their dtypes."""
    kind = csv_type(names, text)

    def parse(content: str) -> np.ndarray:
        # NumPy's parser reads out of bounds on non-ASCII characters in a numeric column and crashes the process.
        if not content.isascii():
            raise ValueError("it holds non-ASCII characters")
        if "\n" not in content and ",".join(names).startswith(content):
            return np.zeros(0, kind)  # the disk was full before the header was complete
        header, *rows = content.split("\n")[:-1] or [""]
        if header != ",".join(names):
            raise ValueError(f"its first line must be {','.join(names)}")
        return np.loadtxt(rows, delimiter=",", dtype=kind, ndmin=1, comments=None) if rows else np.zeros(0, kind)

    return read_text(path, parse)
