"""The components of Dict and Tuple spaces."""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
from gymnasium import spaces


def parts_of(space: gymnasium.Space) -> Iterable[tuple[Any, gymnasium.Space]]:
    """(key, part) for each part of a Dict, or (index, part) for each part of a Tuple; empty for other spaces."""
    if isinstance(space, spaces.Dict):
        return space.items()
    return enumerate(space) if isinstance(space, spaces.Tuple) else ()


def key_within(outer: str | None, name: Any) -> str:
    """The key of a part: the keys and indices that lead to it, joined by slashes. `outer` is the key of the part that
    contains it, or None for the whole space."""
    return str(name) if outer is None else f"{outer}/{name}"


def key_of(path: Sequence[Any]) -> str:
    """The key of the part to which these keys and indices lead."""
    return "/".join(map(str, path))


def same_key(key: str, paths: Iterable[Sequence[Any]]) -> str:
    """Say which parts of an observation share a key, and what to do."""
    shown = " and ".join("observation" + "".join(f"[{step!r}]" for step in path) for path in paths)
    return f"{shown} share the name `{key}`. Rename one of them in the environment or a wrapper."


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
