"""The names of the parts of an observation or action: the keys and indices that lead to a part, joined by slashes."""

from collections.abc import Iterable, Sequence
from typing import Any


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
