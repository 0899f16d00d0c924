"""The result of one check of an environment."""

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
