"""Parse JSON from files and flags. This module imports little, because the command line loads it at startup."""

import json
import reprlib
from typing import Any

MAX_DEPTH = 100
"""Maximum nesting depth of JSON text, far below Python's recursion limit."""


def parse_json(text: str, max_depth: int = MAX_DEPTH, *, is_large: bool = False) -> Any:
    """Parse JSON text. If `is_large`, repeated names are not detected, because checking for them takes time.

    Raises:
        ValueError: the text is not strict JSON, which has no NaN or Infinity; it is nested too deeply; or an object
            contains a name twice, in which case different parsers would read different values.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(text, parse_constant=refuse, object_pairs_hook=None if is_large else without_repetition)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if is_deeper(found, max_depth):
        raise ValueError(f"it is nested more than {max_depth} deep")
    return found


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Convert an object's pairs to a dictionary, after checking that no name is repeated."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{reprlib.repr(twice)} is given more than once")
    return found


def is_deeper(value: Any, most: int) -> bool:
    """Whether a value is nested more than `most` levels deep."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(most):
        inner = (x for outer in level for x in (outer.values() if isinstance(outer, dict) else outer))
        level = [x for x in inner if isinstance(x, list | dict)]
        if not level:
            return False
    return bool(level)
