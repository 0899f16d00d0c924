"""Check that the files to which training appends rows still begin with the rows that were written.

Every checkpoint records the size and the SHA-256 of each of these files. A file whose bytes changed would be cut in the
middle of a row on resume, or rows of two different files would be joined. Checkpoints of older versions record only the
sizes, so for them the check covers only where the cut falls, and the rows next to it.
"""

import hashlib
from pathlib import Path

from upslope.core.reading import parse_json

PART = 1 << 20
"""Number of bytes to read from a file at a time, and the most bytes in which its last row is sought."""


class PrefixDigest:
    """The SHA-256 of the first bytes of a growing file. It continues where it stopped, so a file that only grows is
    read only once."""

    def __init__(self, path: Path):
        self.path = path
        self.restart()

    def restart(self) -> None:
        """Forget what has been read."""
        self.hash, self.size = hashlib.sha256(), 0

    def up_to(self, size: int) -> str:
        """Return the digest of the first `size` bytes."""
        if size < self.size:
            self.restart()
        with self.path.open("rb") as file:
            file.seek(self.size)
            while part := file.read(min(PART, size - self.size)):
                self.hash.update(part)
                self.size += len(part)
        return self.hash.hexdigest()


def change_in(path: Path, size: int, header: str, digest: tuple[PrefixDigest, str] | None) -> str:
    """Describe what happened to the first `size` bytes of a table since they were written, or return an empty string if
    they are unchanged.

    A file with an empty `header` has a JSON object in each row; the header of any other file is that of its columns.
    `digest` is the file's digest, and what it was at the checkpoint."""
    if not path.is_file():
        return "is missing"
    if path.stat().st_size < size:
        return "is shorter than at its checkpoint: rows are missing"
    first, last = ends_of(path, size)
    if b"\r" in first or b"\r" in last:
        return CRLF if digest is None or digest_with_lf(path, size) == digest[1] else CHANGED
    is_cut_between_rows = first.startswith(header.encode()) and (not last or is_row(last, header))
    if digest is None:
        return "" if is_cut_between_rows else CHANGED
    known, before = digest
    known.restart()
    return "" if known.up_to(size) == before else CHANGED


def digest_with_lf(path: Path, size: int) -> str:
    """Return the digest of the first `size` bytes that the file would have if its lines ended in LF."""
    found, left = hashlib.sha256(), size
    with path.open("rb") as file:
        for line in file:
            row = line[:-2] + b"\n" if line.endswith(b"\r\n") else line
            found.update(row[:left])
            left -= len(row)
            if left <= 0:
                break
    return found.hexdigest()


CHANGED = "was changed after training wrote it: its rows are not those of the checkpoint"
CRLF = "was changed after training wrote it: its lines now end in CRLF, as git or an editor on Windows writes them"


def ends_of(path: Path, size: int) -> tuple[bytes, bytes]:
    """Return the first and the last line of a file's first `size` bytes, which may be the same."""
    with path.open("rb") as file:
        first = file.readline(min(PART, size))
        start = max(size - PART, 0)
        file.seek(start)
        lines = file.read(size - start).splitlines(keepends=True)
    return first, lines[-1] if lines else b""


def is_row(line: bytes, header: str) -> bool:
    """Return whether this is a complete row, or the header itself."""
    try:
        text = line.decode("utf-8")
        if not text.endswith("\n"):
            return False
        if not header:
            return isinstance(parse_json(text), dict)
        return text == header or len([float(cell) for cell in text.split(",")]) == len(header.split(","))
    except ValueError:
        return False
