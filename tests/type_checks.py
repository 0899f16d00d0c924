"""Faster type checks. Import this before upslope, because jaxtyping's import hook wraps upslope's functions.

`jaxtyping.jaxtyped` binds the arguments of every call and checks them twice to ensure that the axes of all arrays
agree. Functions without arrays in their annotations use beartype's own wrapper instead, which performs the same checks
in a fraction of the time. For them, jaxtyping's wrapper would add a third to the CPU time of a short run on the host.
"""

import inspect
import typing
from functools import partial
from typing import Any

import jaxtyping

JAXTYPED = jaxtyping.jaxtyped


def may_name_arrays(annotation: Any) -> bool:
    """Return whether an annotation may contain arrays. This is assumed of unevaluated annotations."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if isinstance(annotation, list | tuple):  # a `Callable`'s arguments
        return any(map(may_name_arrays, annotation))
    kind = annotation if isinstance(annotation, type) else type(annotation)
    if any(base.__module__.partition(".")[0] == "jaxtyping" for base in (kind, type(kind), *kind.__mro__)):
        return True
    parts = (*typing.get_args(annotation), getattr(annotation, "__value__", ()))
    return any(map(may_name_arrays, parts))


def jaxtyped(function: Any = None, *, typechecker: Any = None) -> Any:
    """Apply `jaxtyping.jaxtyped`, or only the type checker if the annotations contain no arrays."""
    if function is None:
        return partial(jaxtyped, typechecker=typechecker)
    if inspect.isfunction(function) and not any(map(may_name_arrays, function.__annotations__.values())):
        return typechecker(function)
    return JAXTYPED(function, typechecker=typechecker)


jaxtyping.jaxtyped = jaxtyped
