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
    """One choice in the proposal of a first run, and the reason."""

    what: str
    """A flag of the command, or what upslope chooses by itself."""
    why: str
