"""Words that many share, in messages and in files."""

from collections.abc import Iterable
from difflib import get_close_matches

PREFIX = "health/"
"""Of the metrics of a run's health."""
COMPILED_PREFIX = "jax:"
"""Of the ids of compiled worlds."""


def counted(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`, `10,000 episodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unknown(role: str, name: str, known: Iterable[str], where: str = "upslope list") -> str:
    """Say that a name is not known, and which near ones are; `where` is the command that shows all."""
    lower = {one.lower(): one for one in sorted(known)}
    near = [lower[one] for one in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(lower.values())}."
    return f'There is no {role} "{name}". {hint} `{where}` shows all.'
