"""Tell whether a policy was trained on the recorded episodes from which it is to be judged."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory
from upslope.runs.minari_datasets import is_minari


def learned_from(directory: RunDirectory, data: str | Path) -> str:
    """Return the run that learned from these episodes: the run itself, or one from which it started; empty if none did.

    Runs that were deleted, and recordings that were moved or changed since, are not found."""
    return next((run for run, source in recordings(directory) if is_same(source, data)), "")


def recordings(directory: RunDirectory) -> Iterator[tuple[str, str]]:
    """Yield (run, recorded data) of the run and of all runs from which it started, as far as they can be read."""
    lineage = directory.read().get("lineage")
    runs = [str(directory.path)]
    while isinstance(lineage, dict):
        runs.append(str(lineage.get("run")))
        lineage = lineage.get("before")
    for run in runs:
        try:
            source = RunDirectory(run).config().data
        except (UpslopeError, OSError, ValueError):  # it was deleted, or is damaged, or its name is not a path
            continue
        if source is not None:
            yield run, source


def is_same(one: str | Path, other: str | Path) -> bool:
    """Whether two names stand for the same recorded episodes: the same dataset, the same file, or equal files."""
    if is_minari(one) or is_minari(other):
        return str(one) == str(other)
    first, second = Path(one), Path(other)
    try:
        if not (first.is_file() and second.is_file()):
            return False
        if first.samefile(second):
            return True
        return first.stat().st_size == second.stat().st_size and digest(first) == digest(second)
    except (OSError, ValueError):  # the file cannot be read, or its name is not a path
        return False


def digest(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
