"""Convert encoders and heads to and from strict JSON, and explain unsupported spaces."""

import shlex
from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

import gymnasium

from upslope.core.space_descriptions import ENCODERS, HEADS, MAX_DEPTH, space_fields

SUPPORTED = (
    "Supported observations and actions: Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of these."
)
FIELDS = ENCODERS | HEADS
OF_THE_POLICY = {"of_the_policy": True}
"""Metadata of a field that describes how a policy acts: a setting of the run, not a property of the space."""
OMITTED_BY_DEFAULT = {"omitted_by_default": True}
"""Metadata of a field that was added later, and is written only if it does not have its default value."""


def unsupported(name: str, role: str, space: gymnasium.Space, key: str = "") -> str:
    """A message that says which space cannot be used, why, and what to do. `key` names a part of the whole space."""
    place = f" at `{key}`" if key else ""
    if is_empty(space):
        return (
            f"{name} has the {role} space {space}{place}, which contains no numbers. Declare the actual numbers; if "
            "there are none, declare Discrete(1), which is always 0."
        )
    remedy = "Wrap it so that it has one of the supported spaces"
    kind = kind_of(space).removesuffix(" space").removeprefix("a ")
    return f"{name} has the {role} space {kind}{place}, which upslope cannot use yet. {remedy}. {SUPPORTED}"


def unread_parts(name: str, space: gymnasium.Space, parts: Sequence[tuple[str, gymnasium.Space]]) -> str:
    """A message that says which parts of an observation are unsupported and what to do. The key "" means the whole
    space."""
    if [key for key, _ in parts] == [""]:
        return unsupported(name, "observation", space)
    told = " and ".join(f"`{key}` ({kind_of(part)})" for key, part in parts)
    flags = " ".join(f"--ignore-observation {shlex.quote(key)}" for key, _ in parts)
    one = len(parts) == 1
    return (
        f"{name} observes {told}, which no network can read. Leave {'it' if one else 'them'} out with {flags}, or wrap "
        f"the environment so that it returns numbers. {SUPPORTED}"
    )


def is_empty(space: gymnasium.Space) -> bool:
    """Whether a space is an array without numbers."""
    return space.shape is not None and 0 in space.shape


def kind_of(space: gymnasium.Space) -> str:
    """Describe an unsupported space."""
    kind = type(space).__name__
    if is_empty(space):
        return f"a {kind} without numbers"
    if isinstance(space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
        return f"a {kind} without parts, with keys that are not strings, or more than {MAX_DEPTH} deep"
    return f"a {kind} space"


def to_json(record: Any) -> Any:
    """Describe an encoder or head in strict JSON, with bounds as text because JSON has no infinity."""
    written = {f.name: getattr(record, f.name) for f in fields(record) if is_written(record, f)}
    written |= {name: [repr(x) for x in written[name]] for name in ("low", "high") if name in written}
    if "parts" in written:
        parts = written["parts"]
        is_named = all(isinstance(part, tuple) for part in parts)
        written["parts"] = {key: to_json(part) for key, part in parts} if is_named else list(map(to_json, parts))
    return {"kind": type(record).__name__, **written}


def is_written(record: Any, field: Field[Any]) -> bool:
    """Whether the description of this record contains this field."""
    is_omitted = field.metadata.get("omitted_by_default", False) and getattr(record, field.name) == field.default
    return not (is_omitted or field.metadata.get("of_the_policy"))


def from_json(description: Any, kinds: tuple[type, ...]) -> Any:
    """The inverse of `to_json`, for these kinds.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: the description does not match one of these kinds.
    """
    known = {k.__name__: k for k in kinds}
    return built(*space_fields(description, {name: FIELDS[name] for name in known}), known)


def built(kind: str, given: dict[str, Any], known: dict[str, type]) -> Any:
    """Build the record of a kind from its fields, including its parts."""
    parts: Any = given.get("parts")
    if isinstance(parts, dict):
        given = {"parts": tuple((key, built(kind, x, known)) for key, (kind, x) in sorted(parts.items()))}
    elif parts is not None:
        given = {"parts": tuple(built(kind, x, known) for kind, x in parts)}
    return known[kind](**given)
