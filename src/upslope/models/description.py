"""Encoders and heads as strict JSON, and the words for spaces that have none."""

import math
from dataclasses import asdict
from typing import Any

import gymnasium

SUPPORTED = "Supported: observations Box and Discrete; actions Discrete, Box, MultiDiscrete, MultiBinary."
OLD_NAMES = {"BoxCoding": "BoxEncoder", "DiscreteCoding": "DiscreteEncoder"}
"""What runs of format 1 call an encoder."""


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


def from_json(description: dict[str, Any], kinds: tuple[type, ...]) -> Any:
    """The inverse of `to_json`, for one of these kinds.

    Raises:
        ValueError, TypeError, KeyError: it describes no space.
    """
    fields = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in description.items() if k != "kind"}
    fields |= {name: tuple(map(float, fields[name])) for name in ("low", "high") if name in fields}
    name = str(description["kind"])
    kind = {k.__name__: k for k in kinds}[OLD_NAMES.get(name, name)]
    check_fields(fields)
    return kind(**fields)


def check_fields(fields: dict[str, Any]) -> None:
    """Refuse sizes that are not whole and positive, and bounds that do not fit the shape."""
    for name, value in fields.items():
        if name in ("low", "high"):
            if len(value) != math.prod(fields["shape"]) or any(map(math.isnan, value)):
                raise ValueError(f"`{name}` does not hold a bound for each component")
        elif name == "start":
            if not all(type(x) is int and abs(x) < 2**63 for x in as_tuple(value)):
                raise ValueError("`start` is not whole")
        elif isinstance(value, tuple) is (name == "n") or not all(type(x) is int and x > 0 for x in as_tuple(value)):
            raise ValueError(f"`{name}` is not made of positive whole numbers")
    if "sizes" in fields and not len(fields["sizes"]) == len(fields["start"]) == math.prod(fields["shape"]):
        raise ValueError("`sizes`, `start` and `shape` do not fit")


def as_tuple(value: Any) -> tuple[Any, ...]:
    """The value, or a tuple of it alone."""
    return value if isinstance(value, tuple) else (value,)
