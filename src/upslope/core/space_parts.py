"""The components of Dict and Tuple spaces."""

from collections.abc import Iterable
from typing import Any

import gymnasium
from gymnasium import spaces


def parts_of(space: gymnasium.Space) -> Iterable[tuple[Any, gymnasium.Space]]:
    """(key, part) for each part of a Dict, or (index, part) for each part of a Tuple; empty for other spaces."""
    if isinstance(space, spaces.Dict):
        return space.items()
    return enumerate(space) if isinstance(space, spaces.Tuple) else ()


def leaf_spaces(space: gymnasium.Space) -> Any:
    """The pytree of a space's components that are neither Dict nor Tuple."""
    if isinstance(space, spaces.Dict):
        return {name: leaf_spaces(part) for name, part in parts_of(space)}
    if isinstance(space, spaces.Tuple):
        return tuple(leaf_spaces(part) for _, part in parts_of(space))
    return space


def has_box(space: gymnasium.Space) -> bool:
    """Whether any part of a space is a Box."""
    return isinstance(space, spaces.Box) or any(has_box(part) for _, part in parts_of(space))
