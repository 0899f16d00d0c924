"""The one parser of settings: flags, YAML, JSON and Python values become a field's type by tyro's rules and these."""

import json
import reprlib
from functools import cache
from types import NoneType
from typing import Any

from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from upslope.errors import UpslopeError


def whole(text: str) -> int:
    """A whole number, also written `1e6` or `1_000_000`."""
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise ValueError(f"{text} is not a whole number") from None
        return int(number)


def mapping(text: str) -> dict[str, Any]:
    """A JSON object, without NaN and Infinity, which JSON does not know."""
    found = json.loads(text)
    json.dumps(found, allow_nan=False)
    if not isinstance(found, dict):
        raise ValueError(f"{text} is not a JSON object, e.g. {{}}")
    return found


def none(text: str) -> None:
    """None, which YAML and JSON call null."""
    if text not in ("none", "None"):
        raise ValueError(f"{text} is not none")


KINDS: dict[Any, tuple[str, Any, Any]] = {
    int: ("INT", whole, str),
    dict: ("JSON", mapping, json.dumps),
    NoneType: ("none", none, lambda _: "none"),
}
"""Type → its name in the help, how it is read, and how it is written, where this differs from tyro's rules."""
WORDS = {
    "INT": "a whole number",
    "FLOAT": "a number",
    "JSON": "a mapping of JSON values",
    "[INT [INT ...]]": "a list of whole numbers, e.g. [64, 64]",
    "{True,False}": "true or false",
}
"""The name of a type in the help → what a message calls it."""
REGISTRY = ConstructorRegistry()


@REGISTRY.primitive_rule
def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
    """The rules of `KINDS`, for `tyro.cli` and for `coerce`."""
    kind = info.type_origin or info.type
    if kind not in KINDS:
        return None
    metavar, read, write = KINDS[kind]
    return PrimitiveConstructorSpec(
        1, metavar, lambda words: read(words[0]), lambda x: isinstance(x, kind), lambda x: [write(x)]
    )


@cache
def spec_of(kind: Any) -> Any:
    """How tyro reads a type."""
    with REGISTRY:
        return REGISTRY.get_primitive_spec(PrimitiveTypeInfo.make(kind, set()))


def coerce(name: str, value: Any, kind: Any) -> Any:
    """The value as the type `kind` of the field `name`: YAML reads `1e-3` as text and `64, 64` as a list.

    Raises:
        UpslopeError: it cannot be read as that type.
    """
    if kind == tuple[str, ...] and not isinstance(value, str | list | tuple):
        raise UpslopeError(f"{name} must be a list of texts, not {reprlib.repr(value)}.")
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
        raise UpslopeError(f"{name} must be {expected}, not {reprlib.repr(value)}.") from error
