"""Files of strangers: what is read is a plain file of a sensible size, and nothing is written through a link.

A run directory may come from anybody. A link in it would let a write reach a file elsewhere; a pipe or a device in the
place of a file would never end.
"""

import os
import shutil
import stat
from pathlib import Path
from secrets import token_hex

from upslope.errors import UpslopeError

MAX_TABLE = 1 << 33
"""Bytes; no table of a run is larger."""
MAX_TEXT = 1 << 26
"""Bytes; no description of a run is larger."""
MAX_SETTINGS = 1 << 20
"""Bytes; no file of settings is larger."""


def plain_file(path: Path, most: int) -> Path:
    """The path, if it is a plain file of at most so many bytes.

    Raises:
        UpslopeError: it is missing, a pipe, a device, a folder, or larger.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UpslopeError(f"There is no file {path}. Put a copy of it back, or leave this run out.") from error
    if not stat.S_ISREG(found.st_mode):
        raise UpslopeError(f"{path} is {kind_of(found.st_mode)}, not a plain file, so it is not read. Give a file.")
    if found.st_size > most:
        raise UpslopeError(
            f"{path} has {found.st_size:,} bytes, and upslope writes no such file of more than {most:,}, so it is not "
            "read. Give another file."
        )
    return path


def kind_of(mode: int) -> str:
    """What stands in the place of a file, in words."""
    for test, words in (
        (stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISREG, "a plain file"),
    ):  # fmt: skip
        if test(mode):
            return words
    return "a device or socket"


def own_path(folder: Path, path: Path, *, is_folder: bool = False) -> Path:
    """The path inside a folder, if it may be written: no part of it below the folder is a link, and what stands there
    is a plain file, or a folder where one is meant.

    Raises:
        UpslopeError: it may not.
    """
    place = folder
    parts = path.relative_to(folder).parts
    for k, part in enumerate(parts):
        place = place / part
        try:
            mode = place.lstat().st_mode
        except FileNotFoundError:
            break
        except OSError as error:
            raise UpslopeError(f"{place} cannot be written: {error.strerror or error}.") from error
        if not (stat.S_ISDIR(mode) if is_folder or k < len(parts) - 1 else stat.S_ISREG(mode)):
            raise UpslopeError(
                f"{place} is {kind_of(mode)}, and upslope writes only into files and folders of the run itself, so "
                "nothing was changed. Put the file itself there, or remove it."
            )
    return path


def writable(folder: Path, path: Path) -> Path:
    """`own_path` of a file. One that has several names is first replaced by a copy, so that what has the other names
    stays as it is.

    Raises:
        UpslopeError: it may not be written.
        OSError: it cannot be copied.
    """
    own_path(folder, path)
    if path.exists() and path.stat().st_nlink > 1:
        copy = temporary_beside(path)
        try:
            shutil.copyfile(path, copy)
            copy.replace(path)
        finally:
            copy.unlink(missing_ok=True)
    return path


def temporary_beside(path: Path) -> Path:
    """A name beside a file that nobody can have guessed."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.{token_hex(8)}.tmp")
