"""Read and check text files, and give a clear message if a file is missing, damaged or not written by upslope."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from upslope.core.files import MAX_TABLE, plain_file
from upslope.core.messages import readable
from upslope.core.strict_json import parse_json
from upslope.errors import UpslopeError


def brief(error: BaseException) -> str:
    """An error's message, on one printable line of bounded length."""
    words = " ".join(str(error).split())
    words = readable(words).rstrip(".")
    return words if len(words) <= 200 else words[:200] + "…"


def damaged(path: Path, error: BaseException) -> UpslopeError:
    """Create the error for a file that cannot be parsed."""
    return UpslopeError(
        f"{path} is damaged or was not written by upslope: {type(error).__name__}: {brief(error)}. Restore it "
        "from a copy, or leave this run out."
    )


READING_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError)
"""Exceptions that parsing a damaged or foreign file may raise."""


ROWS_AT_ONCE = 2000
"""Number of rows parsed per call. One call per row takes twice as long, and one call for all rows needs a lot of
memory."""


def read_rows(path: Path) -> Iterator[list[dict[str, Any]]]:
    """Yield the objects of a file with one JSON object per line, in batches. An incomplete last line is omitted.

    Raises:
        UpslopeError: the file is missing, not a plain file, too large, or cannot be parsed.
    """
    plain_file(path, MAX_TABLE)
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            before = 0
            while lines := list(islice(file, ROWS_AT_ONCE)):
                whole = [line for line in lines if line.endswith("\n")]
                yield checked_rows(whole, before)
                before += len(whole)
                if len(whole) < len(lines):  # stop at an incomplete line, whose remainder may have been written by now
                    return
    except READING_ERRORS as error:
        raise damaged(path, error) from error


def checked_rows(lines: list[str], before: int) -> list[dict[str, Any]]:
    """Parse lines that each hold one JSON object; `before` is the number of lines that precede them in the file."""
    try:
        rows = parse_json("[" + ",".join(lines) + "]", is_large=True)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg}: line {before + error.lineno} column {error.colno}") from error
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

    def whole_lines(file: Iterable[str]) -> Iterator[str]:
        for line in file:
            # NumPy's parser reads out of bounds on non-ASCII characters in a numeric column and crashes the process.
            if not line.isascii():
                raise ValueError("it contains non-ASCII characters")
            if line.endswith("\n"):
                yield line[:-1]

    plain_file(path, MAX_TABLE)
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            header = file.readline()
            if not header.endswith("\n") and ",".join(names).startswith(header):
                return np.zeros(0, kind)  # the disk was full before the header was complete
            if header == ",".join(names) + "\r\n":
                raise ValueError("its lines end in CRLF, as git or an editor on Windows writes them, instead of LF")
            if header != ",".join(names) + "\n":
                raise ValueError(f"its first line must be {','.join(names)}")
            rows = whole_lines(file)
            first = next(rows, None)
            if first is None:
                return np.zeros(0, kind)
            return np.loadtxt(chain([first], rows), delimiter=",", dtype=kind, ndmin=1, comments=None)
    except READING_ERRORS as error:
        raise damaged(path, error) from error
