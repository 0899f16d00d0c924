"""Settings from YAML, JSON or Python → values of a field's type, or one clear refusal."""

import json
import math
import reprlib
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from upslope.errors import UpslopeError

WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", dict: "a mapping of JSON values"}


def coerce(name: str, value: Any, kind: Any) -> Any:
    """The value as the type `kind` of the field `name`: YAML reads `1e-3` as text and `64, 64` as a list.

    Raises:
        UpslopeError: it cannot be read as that type.
    """
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        inner = next(option for option in get_args(kind) if option is not type(None))
        return None if value is None or value == "none" else coerce(name, value, inner)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise UpslopeError(f"{name} must be one of {', '.join(get_args(kind))}, not {reprlib.repr(value)}.")
    if origin is tuple:
        item_kind = get_args(kind)[0]
        if item_kind is str and isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple):
            example = "whole numbers, e.g. [64, 64]" if item_kind is int else "texts"
            raise UpslopeError(f"{name} must be a list of {example}, not {reprlib.repr(value)}.")
        return tuple(coerce(name, item, item_kind) for item in value)
    plain = dict if origin is dict else kind
    try:
        return PLAIN[plain](value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UpslopeError(f"{name} must be {WORDS[plain]}, not {reprlib.repr(value)}.") from error


def to_float(value: Any) -> float:
    """A number, also as text."""
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def to_int(value: Any) -> int:
    """A whole number, also as text or as a float such as 1e6."""
    number = to_float(value)
    if not math.isfinite(number) or number != int(number):
        raise ValueError
    return int(value) if isinstance(value, int | str) and str(value).lstrip("+-").isdigit() else int(number)


def to_bool(value: Any) -> bool:
    """True or false, and nothing that merely looks like it."""
    if not isinstance(value, bool):
        raise TypeError
    return value


def to_text(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError
    return value


def to_mapping(value: Any) -> dict[str, Any]:
    """A mapping that JSON can hold."""
    if not isinstance(value, Mapping):
        raise TypeError
    return json.loads(json.dumps(dict(value), allow_nan=False))


PLAIN: dict[Any, Any] = {float: to_float, int: to_int, bool: to_bool, str: to_text, dict: to_mapping}
