"""The public names, for mkdocstrings."""

from __future__ import annotations

import upslope


def names(room: str, language: str = "en") -> str:
    """All public names that live in one module of upslope."""
    if room not in upslope.ROOMS:
        raise LookupError(f"upslope has no public name in {room}; it has some in {', '.join(upslope.ROOMS)}")
    return "\n".join(f"::: upslope.{room}.{name}\n" for name in upslope.ROOMS[room])
