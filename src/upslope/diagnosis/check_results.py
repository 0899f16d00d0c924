"""The result of one check of an environment, and of one choice in the proposal."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "error", "skipped"]


@dataclass(frozen=True)
class Check:
    """The finding of one check, and its remedy."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Choice:
    """One choice in the proposed training command, and the reason for it."""

    what: str
    """A flag of the command, or a choice that upslope makes on its own."""
    why: str
