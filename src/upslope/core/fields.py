"""Check the types of a part's hyperparameters when it is created, before they are compared with their range."""

import dataclasses
import types
import typing
from functools import cache
from typing import Any, Literal

import numpy as np

from upslope.core.messages import listed
from upslope.errors import UpslopeError

WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}


@cache
def hints_of(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass's fields; empty if one of them cannot be evaluated."""
    try:
        return typing.get_type_hints(kind)
    except (NameError, TypeError):  # a user's class may annotate with names that exist only for its type checker
        return {}


def require_field_types(part: Any) -> None:
    """Raise an error if a number, truth value or name in a dataclass's fields does not have its annotated type.

    Fields with other annotations are not checked, nor are defaults, nor arrays, which a program may pass in.
    """
    hints = hints_of(type(part))
    for field in dataclasses.fields(part):
        allowed, value = alternatives(hints.get(field.name)), getattr(part, field.name)
        if not allowed or value is field.default or any(fits(value, kind) for kind in allowed):
            continue
        expected = " or ".join(described(kind) for kind in allowed)
        raise UpslopeError(f"{type(part).__name__}: {field.name} must be {expected}, not {value!r}.")


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types in an annotation, e.g. `float | None`. Empty if one of them cannot be checked here."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else (annotation,)
    return kinds if all(kind in WORDS or typing.get_origin(kind) is Literal for kind in kinds) else ()


def fits(value: Any, kind: Any) -> bool:
    """Whether a value may be given for an annotated type. A whole number is also a number; True is neither."""
    if typing.get_origin(kind) is Literal:
        return isinstance(value, str | int | None) and value in typing.get_args(kind)
    if kind in (int, float):
        is_number = isinstance(value, int | np.integer if kind is int else int | float | np.integer | np.floating)
        return (is_number and not isinstance(value, bool)) or hasattr(value, "__jax_array__") or is_array(value)
    return isinstance(value, kind)


def is_array(value: Any) -> bool:
    """Whether a value is an array, which may be traced."""
    return hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, np.generic)


def described(kind: Any) -> str:
    """A type in words."""
    return WORDS[kind] if kind in WORDS else f"one of {listed(typing.get_args(kind))}"
