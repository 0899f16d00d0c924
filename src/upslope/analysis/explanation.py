"""A metric in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Explanation:
    """A metric in words."""

    title: str
    unit: str
    """Of its axis."""
    meaning: str
    """One line."""
    healthy: str
    """One line: what a run that learns usually shows."""
