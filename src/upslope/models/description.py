"""Encoders and heads as strict JSON, and the words for spaces that have none."""

from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np

from upslope.core.space_descriptions import ENCODERS, HEADS, space_fields

SUPPORTED = "Supported: observations Box and Discrete; actions Discrete, Box, MultiDiscrete, MultiBinary."
FIELDS = ENCODERS | HEADS


def unsupported(name: str, role: str, space: gymnasium.Space) -> str:
    """Say which space cannot be used, why, and what can be done."""
    if isinstance(space, gymnasium.spaces.Box):
        return (
            f"{name} has a Box {role} space of dtype {space.dtype}, and upslope uses Box {role}s of floats. Declare it "
            f"as float32 and round in step(), or as MultiDiscrete. {SUPPORTED}"
        )
    remedy = "Wrap it so that it has one of the supported spaces"
    if role == "observation" and space.is_np_flattenable and not has_pictures(space):
        remedy = "Add --wrapper FlattenObservation, or wrap it with gymnasium.wrappers.FlattenObservation"
    return f"{name} has the {role} space {type(space).__name__}, which upslope cannot use yet. {remedy}. {SUPPORTED}"


def has_pictures(space: gymnasium.Space) -> bool:
    """Whether a space, or a part of it, is an image, which loses its neighbourhoods when it is flattened."""
    if isinstance(space, gymnasium.spaces.Box):
        return space.dtype == np.uint8 and len(space.shape) >= 2
    parts: Any = getattr(space, "spaces", ())
    return any(map(has_pictures, parts.values() if isinstance(parts, dict) else parts))


def to_json(record: Any) -> dict[str, Any]:
    """A description in strict JSON, which knows no infinity: bounds are written as text."""
    fields = asdict(record)
    fields |= {name: [repr(x) for x in fields[name]] for name in ("low", "high") if name in fields}
    return {"kind": type(record).__name__, **fields}


def from_json(description: Any, kinds: tuple[type, ...]) -> Any:
    """The inverse of `to_json`, for one of these kinds.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it describes no space of these kinds.
    """
    known = {k.__name__: k for k in kinds}
    kind, fields = space_fields(description, {name: FIELDS[name] for name in known})
    return known[kind](**fields)
