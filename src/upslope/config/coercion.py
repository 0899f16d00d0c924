"""Convert flags, YAML, JSON and Python values to a field's type, according to tyro's rules and those in `KINDS`."""

import json
import reprlib
from functools import cache
from os import PathLike
from types import NoneType
from typing import Any, get_args

import numpy as np
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from upslope.core.strict_json import parse_json
from upslope.errors import UpslopeError


def whole(text: str) -> int:
    """Parse an integer, which may be written as `1e6` or `1_000_000`."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(f"{text} is not a whole number") from None
        return int(number)


MAX_DEPTH = 32
"""Maximum nesting depth of lists and objects in a setting."""


def mapping(text: str) -> dict[str, Any]:
    """Parse a JSON object. NaN and Infinity are refused, since they are not valid JSON."""
    try:
        found = parse_json(text, MAX_DEPTH)
    except ValueError as error:
        raise ValueError(f"{error}; write a JSON object in single quotes, e.g. '{{\"size\": 20}}'") from error
    json.dumps(found, allow_nan=False)  # 1e999 is parsed as infinity
    if not isinstance(found, dict):
        raise ValueError(f"{text} is not a JSON object, e.g. {{}}")
    return found


def none(text: str) -> None:
    """Parse None, which is written as `none`."""
    if text not in ("none", "None"):
        raise ValueError(f"{text} is not none")


KINDS: dict[Any, tuple[str, Any, Any]] = {
    int: ("INT", whole, str),
    dict: ("JSON", mapping, json.dumps),
    NoneType: ("none", none, lambda _: "none"),
}
"""Type → (name in the help, reader, writer), for types that do not follow tyro's rules."""
WORDS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "JSON": f"a mapping of JSON values, nested at most {MAX_DEPTH} deep",
    "[INT [INT ...]]": "a list of whole numbers, e.g. [64, 64]",
    "{True,False}": "true or false",
}
"""Type name in the help → its description in messages."""
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """Apply the rules in `KINDS`, both for `tyro.cli` and for `coerce`."""
    kind = info.type_origin or info.type
    if kind not in KINDS:
        return None
    metavar, read, write = KINDS[kind]
    return PrimitiveConstructorSpec(
        1, metavar, lambda words: read(words[0]), lambda x: isinstance(x, kind), lambda x: [write(x)]
    )


@cache
def spec_of(kind: Any) -> Any:
    """tyro's parsing specification of a type."""
    with REGISTRY:
        return REGISTRY.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))


def is_texts(value: Any) -> bool:
    """Whether the value is a list of strings. Numbers, such as the index of a vector's component, count as strings."""
    return isinstance(value, list | tuple) and all(isinstance(x, str | int) and not isinstance(x, bool) for x in value)


def importable(value: Any) -> str:
    """Propose the name under which a class or function can be imported; empty if there is none."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<")
    return "" if not isinstance(module, str) or "<" in name else f", e.g. {module}:{name}"


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Convert a value to `kind`, the type of the field `name`. YAML, for example, reads `1e-3` as text.

    Raises:
        UpslopeError: the value cannot be converted to that type.
    """
    if kind == tuple[str, ...] and not (isinstance(value, str) or is_texts(value)):
        raise UpslopeError(f"{name} must be a list of strings, not {reprlib.repr(value)}.")
    if kind in (str, str | None) and (isinstance(value, bool | dict | list | tuple) or (value is None and kind is str)):
        raise UpslopeError(f"{name} must be text, not {reprlib.repr(value)}.")
    if kind in (str, str | None) and not isinstance(value, str | int | float | np.number | PathLike | NoneType):
        raise UpslopeError(
            f"{name} must be text here, not {reprlib.repr(value)}. Pass the name under which it can be imported, as "
            f"module:Name{importable(value)}."
        )
    spec = spec_of(kind)
    try:
        items = value if spec.nargs == "*" and isinstance(value, list | tuple) else [value]
        words = [json.dumps(item) if isinstance(item, dict) else str(item) for item in items]
        if spec.choices is not None and not set(words) <= set(spec.choices):
            raise ValueError(f"it is none of {spec.metavar}")
        return spec.instance_from_str(words)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        metavar = spec.metavar.removeprefix("none|")
        expected = WORDS.get(metavar) or f"one of {metavar.strip('{}').replace(',', ', ')}"
        is_schedule = callable(value) and float in (kind, *get_args(kind))
        hint = " A setting has one value; `schedules` lets some of them change in training." if is_schedule else ""
        raise UpslopeError(f"{name} must be {expected}, not {reprlib.repr(value)}.{hint}") from error
