"""Words that many share, in messages and in files."""

import linecache
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
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
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return f'There is no {role} "{name}". {hint} `{where}` shows all.'


def warn(text: str) -> None:
    """Tell what must not be lost, where no display is at hand."""
    print(readable(text), file=sys.stderr, flush=True)


def told(error: BaseException) -> str:
    """An exception in words: its type, its message where it has one, and where it was raised."""
    words = f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__
    place = raised_at(error)
    return f"{words} ({place})" if place else words


def raised_at(error: BaseException) -> str:
    """The last file and line of an exception that are not upslope's own; those of an installed library count only where
    there are no others. The line itself is shown where the exception says nothing. Empty where there is no place."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((OWN_FOLDER, "<"))]
    if not frames:
        return ""
    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    last = next((f for f in reversed(frames) if not f.filename.startswith(installed)), frames[-1])
    line = "" if str(error).strip() else linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{last.filename}, line {last.lineno}" + (f": {line}" if line else "")


OWN_FOLDER = str(Path(__file__).parents[1])
"""Where upslope's own code lies."""
