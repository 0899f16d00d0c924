"""JSON from files and flags; this module imports little, because the command line needs it."""

import json
from typing import Any

MAX_DEPTH = 100
"""Maximum nesting depth of a JSON text, far below Python's recursion limit."""


def parse_json(text: str, max_depth: int = MAX_DEPTH) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is not strict JSON, which has no NaN or Infinity, or it is nested too deeply.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if is_deeper(found, max_depth):
        raise ValueError(f"it is nested more than {max_depth} deep")
    return found


def is_deeper(value: Any, most: int) -> bool:
    """Whether a value is nested more deeply than this."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(most):
        inner = (x for outer in level for x in (outer.values() if isinstance(outer, dict) else outer))
        level = [x for x in inner if isinstance(x, list | dict)]
        if not level:
            return False
    return bool(level)
