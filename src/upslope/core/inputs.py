"""Refuse inputs of estimators and objectives that would silently give other numbers, such as flags that are not
booleans, or shapes that broadcast."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from upslope.errors import UpslopeError

FLAGS = ("terminated", "truncated", "valid")


def with_checked_facts(call: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments of an estimator's `__call__`. A program does this only while it is traced."""

    @wraps(call)
    def checked(self: Any, rollout: Any, values: Any, gamma: Any) -> Any:
        name = type(self).__name__
        shape = require_array(name, "rollout.reward", getattr(rollout, "reward", None))
        for flag in FLAGS:
            x = getattr(rollout, flag)
            require_array(name, f"rollout.{flag}", x, shape)
            if x.dtype != bool:
                raise UpslopeError(
                    f"{name}: rollout.{flag} must be booleans, not {x.dtype}. Convert it, e.g. with .astype(bool)."
                )
        if self.needs_critic:
            for field in ("value", "next_value"):
                require_array(name, f"values.{field}", getattr(values, field, None), shape)
        if isinstance(gamma, bool | str) or not (isinstance(gamma, int | float | np.number) or hasattr(gamma, "dtype")):
            raise UpslopeError(f"{name}: gamma must be a number, not {gamma!r}.")
        return call(self, rollout, values, gamma)

    return checked


def with_checked_sample(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Check the sample that is given to an objective's `loss`. A program does this only while it is traced."""

    @wraps(loss)
    def checked(self: Any, state: Any, sample: Any) -> Any:
        shapes = {field: np.shape(x) for field, x in sample._asdict().items()}
        if len(set(shapes.values())) > 1:
            found = ", ".join(f"{field} {shape}" for field, shape in shapes.items())
            raise UpslopeError(
                f"{type(self).__name__}: the arrays of a sample must all have the same shape; otherwise "
                f"they would be broadcast against each other: {found}."
            )
        return loss(self, state, sample)

    return checked


def require_array(part: str, name: str, x: Any, shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Require an array [T, N], of a given shape if there is one, and return its shape."""
    found = getattr(x, "shape", None)
    if found is None or not hasattr(x, "dtype"):
        raise UpslopeError(f"{part}: {name} must be an array [T, N], not {type(x).__name__}.")
    if len(found) != 2 or 0 in found:
        raise UpslopeError(
            f"{part}: {name} must have the axes [T, N], each of at least one row, but its shape is {found}. "
            "One column has the shape (T, 1)."
        )
    if shape is not None and found != shape:
        raise UpslopeError(f"{part}: {name} has the shape {found}, but rollout.reward has {shape}.")
    return found
