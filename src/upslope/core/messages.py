"""Shared helpers for text in messages and files."""

import linecache
import shlex
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from unicodedata import category

from upslope.errors import STOPS

PREFIX = "health/"
"""Prefix of the health metrics."""
COMPILED_PREFIX = "jax:"
"""Prefix of the ids of compiled environments."""


def readable(text: str) -> str:
    """Make untrusted text safe to show on one line: control characters, bidirectional overrides and line breaks are
    escaped, so none reaches a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escaped(c) for c in text)


def escaped(character: str) -> str:
    """Escape a character, e.g. as `\\x1b`; spaces of any width are kept."""
    if category(character) == "Zs":
        return character
    number = ord(character)
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character) or (
        f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
    )


def shell(*words: str | Path) -> str:
    """A command as it is typed in a shell, with quotes around words that contain spaces or special characters."""
    return shlex.join(map(str, words))


def counted(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`, `10,000 episodes`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: Iterable[object], most: int = 20) -> str:
    """The names as text, with at most `most` of them shown: `a, b and 3 more`."""
    words = list(map(str, names))
    rest = len(words) - most
    return ", ".join(words[:most]) + (f" and {rest} more" if rest > 0 else "")


def unknown(role: str, name: str, known: Iterable[str], where: str = "upslope list") -> str:
    """The error message for an unknown name, with similar names as suggestions. `where` is the command that lists all
    names."""
    lower = {one.lower(): one for one in sorted(known)}
    near = [lower[one] for one in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(lower.values())}."
    return f'There is no {role} "{name}". {hint} `{where}` shows all.'


def warn(text: str) -> None:
    """Print a warning to stderr, for code without a display."""
    print(readable(text), file=sys.stderr, flush=True)


def text_of(x: Any) -> str:
    """`str(x)` for an object from other code, or the name of its type if `str` fails."""
    try:
        return str(x)
    except STOPS:
        raise
    except BaseException:
        return f"<{type(x).__name__}>"


def told(error: BaseException) -> str:
    """Describe an exception: its type, its message if any, and where it was raised.

    Of JAX's own errors, only the first line is used: the others explain how JAX traces functions."""
    said = text_of(error).strip()
    if is_of_jax(error):
        said = said.partition("\n")[0].rstrip(".")
    words = f"{type(error).__name__}: {said}" if said else type(error).__name__
    place = raised_at(error)
    return f"{words} ({place})" if place else words


def is_of_jax(error: BaseException) -> bool:
    """Whether JAX defines the type of an exception, e.g. for `if` on a value that it traces."""
    return type(error).__module__.partition(".")[0] == "jax"


def raised_at(error: BaseException) -> str:
    """The innermost file and line outside upslope in a traceback. Installed libraries count only if there is no other
    frame, and only if upslope called them: a call by upslope that fails at once, e.g. for a missing argument, has no
    such place.

    The source line is included if the exception has no message. The result is empty if there is no such frame."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    others = [f for f in frames if not f.filename.startswith(OWN_FOLDER)]
    installed = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    theirs = [f for f in others if not f.filename.startswith(installed)] or others
    if not theirs or (frames[-1] not in others and theirs is others):
        return ""
    last = theirs[-1]
    line = "" if text_of(error).strip() else linecache.getline(last.filename, last.lineno or 0).strip()
    return f"{Path(last.filename).name}, line {last.lineno}" + (f": {line}" if line else "")


OWN_FOLDER = str(Path(__file__).parents[1])
"""The folder of upslope's own code."""
