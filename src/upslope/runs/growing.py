"""Read the tables of a run directory while they grow. Files are reopened each time and nothing is locked or written, so
this also works over a network share."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from upslope.core.files import MAX_TABLE, plain_file
from upslope.core.reading import damaged, parse_json
from upslope.runs.directory import STOP


class GrowingTable:
    """Reads the complete lines of a growing file. If a resumed run has truncated the file, it is read again from the
    start."""

    def __init__(self, path: Path):
        self.path = path
        self.count = 0
        """Number of lines read so far from the start of the file."""
        self.has_restarted = False
        """Whether the last `read` started over from the beginning."""
        self.position, self.anchor = 0, b""

    def read(self) -> list[str]:
        """Return the complete lines that were added since the last call, or no lines if the file does not exist yet."""
        if not self.path.exists():
            return []
        plain_file(self.path, MAX_TABLE)
        try:
            content = self.content()
        except OSError:  # the share may be briefly unavailable
            return []
        end = content.rfind(b"\n") + 1
        lines = content[:end].splitlines(keepends=True)
        if lines:
            self.position, self.anchor, self.count = self.position + end, lines[-1], self.count + len(lines)
        return [line.decode("utf-8", "replace").removesuffix("\n") for line in lines]

    def content(self) -> bytes:
        """Return the bytes after the last line that was read, or all bytes if that line is no longer there."""
        with self.path.open("rb") as file:
            file.seek(self.position - len(self.anchor))
            self.has_restarted = file.read(len(self.anchor)) != self.anchor
            if self.has_restarted:
                self.position, self.anchor, self.count = 0, b"", 0
                file.seek(0)
            return file.read()


def is_last(row: dict[str, Any], budget: int) -> bool:
    """Return whether a row is its seed's last, because its budget of steps is spent or the row records that the seed
    has stopped."""
    return row["step"] >= budget or STOP in row


def parsed_rows(path: Path, lines: list[str], seeds: Container[int]) -> list[dict[str, Any]]:
    """Parse lines of metrics.jsonl.

    Raises:
        UpslopeError: a row is not a JSON object with a step and one of the given seeds.
    """
    try:
        rows = [parse_json(line, is_large=True) for line in lines]
        for row in rows:
            if not (isinstance(row, dict) and type(row.get("step")) is int and row.get("seed", "") in seeds):
                raise TypeError(
                    f"a row must be an object with a seed of the run and a step, not {json.dumps(row)[:80]}"
                )
    except (ValueError, TypeError) as error:
        raise damaged(path, error) from error
    return rows


def episode_of(line: str) -> tuple[int, int, float, int] | None:
    """Parse a line of episodes.csv as (step, seed, return, length). Return None if it is the header or not an
    episode."""
    try:
        step, seed, episode_return, length, *_ = line.split(",")
        return int(step), int(seed), float(episode_return), int(length)
    except ValueError:
        return None
