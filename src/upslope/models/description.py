"""Encoders and heads as strict JSON, and the words for spaces that have none."""

from dataclasses import asdict
from typing import Any

import gymnasium

from upslope.core.space_descriptions import ENCODERS, HEADS, space_fields

SUPPORTED = "Supported: observations Box and Discrete; actions Discrete, Box, MultiDiscrete, MultiBinary."
FIELDS = ENCODERS | HEADS


def unsupported(name: str, role: str, space: gymnasium.Space) -> str:
    """Say which space cannot be used and what can be done."""
    remedy = (
        "Wrap it with gymnasium.wrappers.FlattenObservation"
        if role == "observation"
        else "Wrap it so that it takes one of the supported spaces"
    )
    return f"{name} has the {role} space {type(space).__name__}, which upslope cannot use yet. {remedy}. {SUPPORTED}"


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
