"""Check the space descriptions in an untrusted config.json, without importing the libraries that use them."""

import math
from typing import Any

ENCODERS = {
    "BoxEncoder": ("shape",),
    "ImageEncoder": ("shape",),
    "DiscreteEncoder": ("n", "start"),
    "MultiDiscreteEncoder": ("shape", "sizes", "start"),
    "MultiBinaryEncoder": ("shape",),
    "DictEncoder": ("parts",),
    "TupleEncoder": ("parts",),
}
"""Observation kinds and their fields."""
PARTS: dict[str, type] = {"DictEncoder": dict, "TupleEncoder": list, "DictHead": dict, "TupleHead": list}
"""Composite kinds and the JSON container of their parts."""
HEADS = {
    "DiscreteHead": ("n", "start"),
    "BoxHead": ("shape", "low", "high"),
    "MultiDiscreteHead": ("shape", "sizes", "start"),
    "MultiBinaryHead": ("shape",),
    "DictHead": ("parts",),
    "TupleHead": ("parts",),
}
"""Action kinds and their fields."""
INTEGERS = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
ACTION_DTYPES = {
    "BoxHead": ("float32", "float64", "float16"),
    "DiscreteHead": INTEGERS,
    "MultiDiscreteHead": INTEGERS,
}
"""The dtypes allowed for each action kind in the optional field `dtype`; the first is the default."""
OLD_NAMES = {"BoxCoding": "BoxEncoder", "DiscreteCoding": "DiscreteEncoder"}
"""Encoder names in runs of format 1."""
MAX_FEATURES, MAX_DIMENSIONS, MAX_PARTS, MAX_DEPTH = 2**31, 64, 2**12, 16
"""Upper bounds on the number of network inputs or outputs, array axes and parts of a space, and on nesting depth."""

MAX_START = 2**62
"""Upper bound on the magnitude of the first of several choices."""


def check_spaces(spaces: Any) -> None:
    """Check that `spaces` describes an observation and an action space.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: the description is invalid.
    """
    space_fields(spaces["observation"], ENCODERS)
    space_fields(spaces["action"], HEADS)
    if not isinstance(spaces.get("has_masks", False), bool):
        raise TypeError("`has_masks` must be true or false")


def space_fields(description: Any, kinds: dict[str, tuple[str, ...]], depth: int = 0) -> tuple[str, dict[str, Any]]:
    """The kind and fields of a description, with lists converted to tuples and bounds to floats. Each of its parts
    becomes a (kind, fields) pair.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: the description is not a space of a known kind.
    """
    if not isinstance(description, dict) or not isinstance(description.get("kind"), str):
        raise TypeError("a space must be an object with a `kind`")
    kind = OLD_NAMES.get(description["kind"], description["kind"])
    if kind not in kinds:
        raise ValueError(f"no space of kind {description['kind'][:60]!r} is allowed here")
    if kind in PARTS:
        return kind, {"parts": part_fields(kind, description, kinds, depth)}
    fields = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in description.items() if k != "kind"}
    needed = kinds[kind]
    if kind in ("DiscreteEncoder", "DiscreteHead"):
        fields.setdefault("start", 0)
    has_kinds = fields.pop("has_kinds", False) if kind == "ImageEncoder" else False
    if not isinstance(has_kinds, bool):
        raise TypeError("`has_kinds` must be true or false")
    dtypes = ACTION_DTYPES.get(kind) if kind in kinds else None
    dtype = fields.pop("dtype", dtypes[0]) if dtypes else None
    if dtype is not None and dtype not in (dtypes or ()):
        raise ValueError(f"`dtype` must be one of {', '.join(dtypes or ())}")
    if fields.keys() != set(needed):
        raise ValueError(f"{kind} must have the fields {', '.join(needed)}")
    for name in {"low", "high"} & fields.keys():
        if not isinstance(fields[name], tuple) or any(isinstance(x, bool) for x in fields[name]):
            raise TypeError(f"`{name}` must be a list of numbers")
        fields[name] = tuple(map(float, fields[name]))
    check_fields(fields)
    if dtype in INTEGERS:
        check_choices(fields, str(dtype))
    fields |= {"has_kinds": has_kinds} if kind == "ImageEncoder" else {}
    return kind, fields if dtype is None else fields | {"dtype": dtype}


def part_fields(kind: str, description: dict[str, Any], kinds: dict[str, tuple[str, ...]], depth: int) -> Any:
    """The kind and fields of each part, keyed by name or in order."""
    parts: Any = description.get("parts")
    holds = PARTS[kind]
    if description.keys() != {"kind", "parts"} or not isinstance(parts, holds):
        raise TypeError(f"{kind} has its `parts` in {'an object' if holds is dict else 'a list'}, and nothing else")
    if not 1 <= len(parts) <= MAX_PARTS or depth >= MAX_DEPTH:
        raise ValueError(f"a space has 1 to {MAX_PARTS} parts, at most {MAX_DEPTH} deep")
    if isinstance(parts, dict):
        return {str(key): space_fields(part, kinds, depth + 1) for key, part in parts.items()}
    return [space_fields(part, kinds, depth + 1) for part in parts]


def check_fields(fields: dict[str, Any]) -> None:
    """Check that sizes are positive integers within limits, and that bounds match the shape."""
    for name, value in fields.items():
        if name in ("low", "high"):
            if len(value) != math.prod(fields["shape"]) or any(map(math.isnan, value)):
                raise ValueError(f"`{name}` does not contain a bound for each component")
        elif name == "start":
            if not all(type(x) is int and abs(x) < MAX_START for x in as_tuple(value)):
                raise ValueError("`start` does not contain whole numbers")
        elif isinstance(value, tuple) is (name == "n") or not all(type(x) is int and x > 0 for x in as_tuple(value)):
            raise ValueError(f"`{name}` does not consist of positive whole numbers")
        elif name == "shape" and (len(value) > MAX_DIMENSIONS or math.prod(value) > MAX_FEATURES):
            raise ValueError("`shape` is too large")
        elif name != "shape" and sum(as_tuple(value)) > MAX_FEATURES:
            raise ValueError(f"`{name}` is too large")
    if "sizes" in fields:
        if not isinstance(fields["start"], tuple):
            raise TypeError("`start` must be a list")
        if not len(fields["sizes"]) == len(fields["start"]) == math.prod(fields["shape"]):
            raise ValueError("`sizes`, `start` and `shape` do not match")
    elif isinstance(fields.get("start"), tuple):
        raise TypeError("`start` must be a number")


def check_choices(fields: dict[str, Any], dtype: str) -> None:
    """Check that this dtype can hold every choice."""
    start, sizes = as_tuple(fields["start"]), as_tuple(fields["n"] if "n" in fields else fields["sizes"])
    lowest, largest = range_of_choices(dtype)
    if min(start) < lowest or any(first + n - 1 > largest for first, n in zip(start, sizes, strict=True)):
        raise ValueError("`dtype` cannot hold every choice")


def range_of_choices(dtype: str) -> tuple[int, int]:
    """The smallest and largest choice that an action of this integer dtype can be."""
    is_unsigned, bits = dtype.startswith("u"), int(dtype.removeprefix("u").removeprefix("int"))
    largest = min(2**bits if is_unsigned else 2 ** (bits - 1), MAX_START) - 1
    return (0 if is_unsigned else -largest - 1), largest


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Wrap the value in a tuple unless it already is one."""
    return value if isinstance(value, tuple) else (value,)
