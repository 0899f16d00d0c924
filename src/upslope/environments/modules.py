"""Resolve names like `module:Name` to objects, and report failures."""

import importlib
import inspect
from collections.abc import Callable
from functools import reduce
from typing import Any

import gymnasium
import numpy as np

from upslope.core.messages import told
from upslope.core.user_modules import reach
from upslope.environments.base import BrokenEnvironmentError
from upslope.errors import STOPS, UpslopeError

MADE_WITH_ARGUMENTS = "(…)"
"""Suffix for names that do not fully identify their object."""


def import_module(name: str, asked: str) -> Any:
    """Import the module before the colon, or report that it cannot be found."""
    if not all(name.split(".")) or "/" in name:
        raise UpslopeError(
            f'"{asked}" has no valid module name before the colon. Write module:Name, e.g. mine:World for the class '
            "World in mine.py, or package.module:Name."
        )
    try:
        reach(name)
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        remedy = "Install it, or run the command in its folder."
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            remedy = f"Install {error.name}, which it needs."
        raise UpslopeError(f'"{asked}" names the module {name}, which cannot be imported: {error}. {remedy}') from error
    except STOPS:
        raise
    except BaseException as error:
        raise UpslopeError(
            f'"{asked}" names the module {name}, which cannot be imported: it raised {told(error)}. Correct it.'
        ) from error


def found(name: str) -> Any:
    """The object `module:Name`; None if the module has no such name.

    Raises:
        UpslopeError: the name cannot be resolved in another process, or the module cannot be imported.
    """
    module, _, attribute = name.rpartition(":")
    reason = lost(name)
    try:
        return reduce(getattr, attribute.split("."), import_module(module, name))
    except (AttributeError, UpslopeError) as error:
        if reason:
            raise UpslopeError(f"The environment {name} cannot be found by its name: {reason}. {PASS_IT}") from error
        if isinstance(error, UpslopeError):
            raise
        return None


PASS_IT = (
    "In Python, pass it as environment=… to upslope.resume, evaluate or record. To use it in commands, define "
    "it in a module and train it by name, as module:Name."
)


def lost(name: str) -> str:
    """Why an environment cannot be found by this name in another process; empty if it can."""
    module, _, attribute = name.rpartition(":")
    if "<lambda>" in attribute:
        return "it is a lambda, which has no name"
    if "<locals>" in attribute:
        return "it is defined inside a function"
    if attribute.endswith(MADE_WITH_ARGUMENTS):
        return "it was created with arguments that its name does not show"
    if module == "__main__":
        return "it is defined in a script or notebook, not in a module"
    return ""


def name_of(environment: Any) -> str:
    """`module:Name` of a class, a function, or an instance's class."""
    kind = environment if hasattr(environment, "__qualname__") else type(environment)
    return f"{kind.__module__}:{kind.__qualname__}"


def label_of(environment: Any) -> str:
    """The name of an object that a user passed in Python, marked if the name alone does not identify the object."""
    name = name_of(environment)
    if lost(name):
        return name if is_class_or_function(environment) or is_default(type(environment), environment) else marked(name)
    try:
        there = found(name)
    except UpslopeError:
        there = None
    is_same = there is environment or (is_class_or_function(environment) and there == environment)
    return name if is_same or is_default(there, environment) else marked(name)


def marked(name: str) -> str:
    """Mark a name that does not identify its object."""
    return name + MADE_WITH_ARGUMENTS


def is_class_or_function(environment: Any) -> bool:
    """Whether the object is a class or a function, which has its own name."""
    return hasattr(environment, "__qualname__")


def is_default(kind: Any, environment: Any) -> bool:
    """Whether an object equals the one that its class creates without arguments."""
    if kind is not type(environment):
        return False
    try:
        fresh, mine = vars(kind()), vars(environment)
        return fresh.keys() == mine.keys() and all(is_equal(mine[name], fresh[name]) for name in mine)
    except Exception:  # a class that needs arguments, or values that cannot be compared
        return False


def is_equal(a: Any, b: Any) -> bool:
    """Whether two attribute values are equal."""
    return a is b or (type(a) is type(b) and bool(np.array_equal(a, b) if hasattr(a, "shape") else a == b))


def call(create: Callable[..., Any], name: str, env_kwargs: dict[str, Any]) -> Any:
    """Call a user's class or factory to create an environment, or report that it failed."""
    if isinstance(create, gymnasium.Env):
        raise UpslopeError(
            f"{name} is one environment, but training needs several, each newly created. Pass its class, its id, or a "
            'function that creates one, e.g. lambda: gymnasium.make("CartPole-v1").'
        )
    try:
        return create(**env_kwargs)
    except UpslopeError:
        raise
    except STOPS:
        raise
    except BaseException as error:
        raise BrokenEnvironmentError(
            f"{name} could not be created with {env_kwargs or 'no arguments'}: {told(error)}. Correct it, "
            "or pass its arguments with --env-kwargs."
        ) from error


def accepts(create: Callable[..., Any], argument: str) -> bool:
    """Whether a class or factory accepts a keyword argument."""
    try:
        parameters = inspect.signature(create).parameters
    except (TypeError, ValueError):
        return True
    kinds = {parameter.kind for parameter in parameters.values()}
    return argument in parameters or inspect.Parameter.VAR_KEYWORD in kinds
