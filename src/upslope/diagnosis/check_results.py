"""The result of one check of an environment, and one choice in the proposed command."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Check:
    """What one check found, and the remedy."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Choice:
    """One choice in the proposed training command, and the reason for it."""

    what: str
    """A flag of the command, or a choice that upslope makes automatically."""
    why: str
