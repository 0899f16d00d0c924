"""Read the numbers that --log-info selects from `info` at the end of an episode.

A nested key is written `outer.inner`, and the elements of a list or an array are counted from 0. Keys that contain a
dot are supported too.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from upslope.core.messages import text_of
from upslope.engines.border import Place
from upslope.engines.notices import Notices
from upslope.environments.vector import column_of

MISSING = object()
MAX_SHOWN = 12
"""Maximum number of keys that a notice lists."""
NOT_NUMBERS = ("action_mask", "final_obs", "final_observation", "final_info", "episode", "TimeLimit")
"""Keys of `info` that do not measure an episode, or that upslope stores anyway."""


class InfoReader:
    """Reads the numbers under the given keys. If a key has no number, it returns nan and shows one notice for that
    key."""

    def __init__(self, keys: Sequence[str], name: str, notices: Notices):
        self.keys, self.name, self.notices = keys, name, notices

    def __call__(self, info: Any, place: Place, column: int | None = None) -> tuple[float, ...]:
        """Read the numbers in the info of one environment, or of a column of a vector environment."""
        return tuple(self.one(info, key, place, column) for key in self.keys)

    def one(self, info: Any, key: str, place: Place, column: int | None) -> float:
        """Read the number under one key."""
        found = found_in(info, key) if column is None else found_in_column(info, key, column)
        value = number_of(found)
        if value is None:
            known = ", ".join(names_of(info)) or "no numbers"
            what = (
                "no such key" if found is MISSING else f"{' '.join(text_of(found).split())[:60]}, which is not a number"
            )
            self.notices(
                f"log_info {key}",
                f"warning: info has {what} for --log-info {key} at the end of an episode of {self.name}: "
                f"{place.describe()}. It has {known}. The episode's value is nan, and this warning is shown once.",
            )
        return float("nan") if value is None else value


def found_in(info: Any, key: str) -> Any:
    """Return the value of a key, or `MISSING` if there is none."""
    for first, rest in splits(key):
        inner = child_of(info, first)
        found = inner if rest is None or inner is MISSING else found_in(inner, rest)
        if found is not MISSING:
            return found
    return MISSING


def splits(key: str) -> Iterator[tuple[str, str | None]]:
    """Yield the whole key with None, and then the parts before and after each dot."""
    yield key, None
    for place in (i for i, letter in enumerate(key) if letter == "."):
        yield key[:place], key[place + 1 :]


def child_of(node: Any, key: str) -> Any:
    """Return the value of a key in a mapping, or at an index of a list or an array, or `MISSING` if there is none."""
    if isinstance(node, Mapping):
        return node.get(key, MISSING)
    if key.isdecimal() and isinstance(node, list | tuple | np.ndarray) and dimensions(node) and int(key) < len(node):
        return node[int(key)]
    return MISSING


def found_in_column(info: Any, key: str, column: int) -> Any:
    """Return the value of a key in a column's part of the info of a vector environment, or `MISSING` if there is
    none."""
    return found_in(column_of(info, column), key)


def dimensions(x: Any) -> int:
    """Return the number of axes of an array or of nested lists, or 0 if rows have unequal lengths."""
    try:
        return np.ndim(x)
    except ValueError:
        return 0


def number_of(value: Any) -> float | None:
    """Convert the value to a number, or return None if that is impossible."""
    try:
        if isinstance(value, bool | int | float):
            return float(value)
        array = np.asarray(value)
        is_number = array.size == 1 and not np.ma.is_masked(value) and array.dtype.kind in "biuf"
        return float(array.reshape(-1)[0]) if is_number else None
    except Exception:  # e.g. a tensor that records gradients
        return None


def names_of(info: Any, prefix: str = "") -> list[str]:
    """Return at most `MAX_SHOWN` of the keys under which `info` holds numbers."""
    return list(numbers_in(info, prefix))[:MAX_SHOWN]


def numbers_in(info: Any, prefix: str = "") -> dict[str, float]:
    """Return the numbers in the info of one environment that describe an episode, by key."""
    found: dict[str, float] = {}
    for key, value in info.items() if isinstance(info, Mapping) else ():
        name = f"{prefix}{key}"
        if not isinstance(key, str) or name.startswith(("_", *NOT_NUMBERS)):
            continue
        number = number_of(value)
        if number is not None:
            found[name] = number
        elif isinstance(value, Mapping):
            found |= numbers_in(value, f"{name}.")
        elif isinstance(value, list | tuple | np.ndarray) and dimensions(value) == 1 and len(value) <= MAX_SHOWN:
            parts = {f"{name}.{i}": number_of(part) for i, part in enumerate(value)}
            found |= {part: number for part, number in parts.items() if number is not None}
    return found
