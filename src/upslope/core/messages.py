"""Words that many share, in messages and in files."""

from collections.abc import Iterable
from difflib import get_close_matches
from unicodedata import category

PREFIX = "health/"
"""Of the metrics of a run's health."""
COMPILED_PREFIX = "jax:"
"""Of the ids of compiled worlds."""


def readable(text: str) -> str:
    """Text from outside as it may be shown, on one line: control characters, those that turn the direction of writing,
    and ends of lines are spelled out, so that they reach no terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else spelled_out(c) for c in text)


def spelled_out(character: str) -> str:
    """`\\x1b` for an escape; spaces of any width stay."""
    if category(character) == "Zs":
        return character
    number = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
    )


def counted(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`, `10,000 episodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def unknown(role: str, name: str, known: Iterable[str], where: str = "upslope list") -> str:
    """Say that a name is not known, and which near ones are; `where` is the command that shows all."""
    lower = {one.lower(): one for one in sorted(known)}
    near = [lower[one] for one in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(lower.values())}."
    return f'There is no {role} "{name}". {hint} `{where}` shows all.'
