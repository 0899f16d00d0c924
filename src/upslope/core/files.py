"""Safe access to untrusted files: only plain files of bounded size are read, and nothing is written through a link.

A run directory may come from an untrusted source. A link in it would redirect a write to a file elsewhere, and reading
a pipe or a device might never end.
"""

import os
import shutil
import stat
from pathlib import Path
from secrets import token_hex

from upslope.errors import UpslopeError

AnyPath = str | os.PathLike[str]
"""A path as users give it."""

MAX_TABLE = 1 << 33
"""Largest size of a run's table, in bytes."""
MAX_TEXT = 1 << 26
"""Largest size of a run's description, in bytes."""
MAX_SETTINGS = 1 << 20
"""Largest size of a settings file, in bytes."""


def plain_file(path: Path, max_bytes: int) -> Path:
    """Return the path if it is a plain file of at most `max_bytes` bytes.

    Raises:
        UpslopeError: the path is missing, a pipe, a device or a folder, or the file is too large.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise UpslopeError(f"There is no file {path}. Restore it from a copy, or leave this run out.") from error
    if not stat.S_ISREG(found.st_mode):
        raise UpslopeError(f"{path} is {kind_of(found.st_mode)}, not a plain file, so it is not read. Pass a file.")
    if found.st_size > max_bytes:
        raise UpslopeError(
            f"{path} is {found.st_size:,} bytes long; upslope reads such files only up to {max_bytes:,} bytes. Give "
            "another file."
        )
    return path


def kind_of(mode: int) -> str:
    """Describe a file type, given its mode."""
    for test, words in (
        (stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISREG, "a plain file"),
    ):  # fmt: skip
        if test(mode):
            return words
    return "a device or socket"


def safe_path(folder: Path, path: Path, *, is_folder: bool = False) -> Path:
    """Return a path inside a folder if it may be written to: no component below the folder is a link, and if the path
    exists, it is a plain file, or a folder if `is_folder`.

    Raises:
        UpslopeError: the path may not be written to.
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
                f"{place} is {kind_of(mode)}, and upslope writes only into files and folders of the run "
                "itself, so nothing was changed. Remove it, or replace it with a plain file or folder."
            )
    return path


def writable(folder: Path, path: Path) -> Path:
    """Check a file with `safe_path` and return it. A file with several hard links is first replaced by a copy, so that
    writing to it leaves the other links unchanged.

    Raises:
        UpslopeError: the file may not be written to.
        OSError: the file cannot be copied.
    """
    safe_path(folder, path)
    if path.exists() and path.stat().st_nlink > 1:
        copy = temporary_beside(path)
        try:
            shutil.copyfile(path, copy)
            copy.replace(path)
        finally:
            copy.unlink(missing_ok=True)
    return path


def temporary_beside(path: Path) -> Path:
    """An unpredictable temporary path in the same folder."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}.{token_hex(8)}.tmp")


def output_file(output: str | Path, default: str) -> Path:
    """The file to write to: `default` if `output` is a folder or ends in a slash. A name without a suffix gets that of
    `default`."""
    path = Path(output)
    if path.is_dir() or str(output).endswith(("/", "\\")):
        path /= default
    return path if path.suffix else path.with_suffix(Path(default).suffix)


def require_folder(path: Path) -> None:
    """Raise an error unless the folder of a file that will be written exists."""
    if not path.parent.is_dir():
        raise UpslopeError(f"There is no folder {path.parent} to write {path.name} into. Create it first.")
