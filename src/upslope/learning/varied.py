"""Compile several tasks that differ only in numeric settings into one program, whose inputs are learning rates,
discounts and coefficients.

An ordinary program contains its hyperparameters as constants. Formulas like `1 - epsilon` or `gamma * lambda_` are
computed once, in Python's double precision, while the program is traced. Here, a task's field holds a `Varied` number
instead. Arithmetic with other numbers gives another `Varied` number. When a `Varied` number is combined with an array,
it becomes an input of the program. The value of that input is computed outside the program for each task, also in
double precision. A task therefore uses the same numbers that its own program would contain as constants, and no formula
needs to be aware of `Varied`.
"""

import copy
import dataclasses
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array, Float

from upslope.errors import UpslopeError
from upslope.learning.iteration import Task

Path = tuple[str, ...]
"""The names of the fields that lead from a task to one of its numbers."""
Read = Callable[["Varied"], Any]
"""A function that maps a number to the corresponding input of the program."""
MAX_INPUTS = 64
"""Maximum number of program inputs for `Varied` numbers and for the results of formulas that use them."""


class Varied(float):
    """A number that a program takes as an input.

    Code that is not aware of this class sees a float with the value nan, so its results are obviously wrong.
    """

    text: str
    value: Callable[[Sequence[float]], float]
    read: Read

    def __new__(cls, text: str, value: Callable[[Sequence[float]], float], read: Read) -> "Varied":
        """`text` is the formula, `value` computes the number from the numbers of a task, and `read` returns the
        program's input."""
        made = super().__new__(cls, math.nan)
        made.text, made.value, made.read = text, value, read
        return made

    def __jax_array__(self) -> Float[Array, ""]:
        return self.read(self)

    def __neg__(self) -> "Varied":
        return Varied(f"-{self.text}", lambda numbers: -self.value(numbers), self.read)

    def __repr__(self) -> str:
        return self.text

    def refuse(self, *_: Any) -> Any:
        raise UndecidedError(
            f"{self.text} determines which operations are computed, so it cannot be an input of the program."
        )

    # This omits `__float__`, which JAX calls to check any float's magnitude before it requests the array above.
    __bool__ = __int__ = __index__ = __round__ = __floor__ = __ceil__ = __hash__ = refuse  # pyright: ignore


class UndecidedError(TypeError):
    """Raised when code needs the value of a number that differs between the tasks of a program."""


def arithmetic(symbol: str, operation: Callable[[Any, Any], Any], *, is_reflected: bool) -> Callable[..., Any]:
    """Create a method of `Varied` for this operation with another number. Operations with arrays are left to JAX."""

    def method(self: Varied, other: Any) -> Any:
        if not isinstance(other, int | float):
            return NotImplemented
        known = other.value if isinstance(other, Varied) else lambda _: other
        text = other.text if isinstance(other, Varied) else repr(other)
        first, second = (known, self.value) if is_reflected else (self.value, known)
        words = f"({text} {symbol} {self.text})" if is_reflected else f"({self.text} {symbol} {text})"
        return Varied(words, lambda numbers: operation(first(numbers), second(numbers)), self.read)

    return method


def comparison(self: Varied, other: Any) -> Any:
    """Leave arrays to JAX, and refuse numbers, because the result would differ between tasks."""
    return self.refuse() if isinstance(other, int | float) else NotImplemented


for symbol, name in {"+": "add", "-": "sub", "*": "mul", "/": "truediv", "**": "pow"}.items():
    for prefix in ("", "r"):
        method = arithmetic(symbol, getattr(operator, name), is_reflected=prefix == "r")
        setattr(Varied, f"__{prefix}{name}__", method)
for name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Varied, f"__{name}__", comparison)

# Functions that JAX compiles separately, e.g. `jnp.clip`, flatten their arguments as pytrees.
jax.tree_util.register_pytree_node(Varied, lambda x: ((x.read(x),), None), lambda _, children: children[0])


@dataclass(eq=False)
class Inputs:
    """The inputs of a program that represent numbers, in the order in which its formulas use them."""

    columns: dict[str, tuple[int, Callable[[Sequence[float]], float]]] = field(default_factory=dict)
    """The formula's text → its column, and its value for the numbers of a task."""

    def reading(self, row: Float[Array, "K"]) -> Read:
        """Read numbers from a row of the program's inputs. Each new formula is assigned a new column."""

        def read(number: Varied) -> Any:
            column, _ = self.columns.setdefault(number.text, (len(self.columns), number.value))
            if column >= MAX_INPUTS:
                raise UpslopeError(f"The program's formulas compute more than {MAX_INPUTS} numbers from its settings.")
            return row[column]

        return read

    def check(self, count: int) -> None:
        """Raise an error if a program has overlooked one of the `count` numbers of its tasks.

        Raises:
            UndecidedError: a formula treated a number as a constant, e.g. through `math.exp`.
        """
        met = {found for text in self.columns for found in re.findall(r"x\d+", text)}
        if overlooked := {f"x{place}" for place in range(count)} - met:
            raise UndecidedError(f"{', '.join(sorted(overlooked))} did not become an input of the program.")

    def row(self, numbers: Sequence[float]) -> list[float]:
        """Return the inputs for the numbers of a task."""
        return [value(numbers) for _, value in self.columns.values()] + [0.0] * (MAX_INPUTS - len(self.columns))


@dataclass(frozen=True, eq=False)
class Family:
    """Tasks that one program can train, because they differ only in the numbers at `paths`."""

    first: Task
    paths: tuple[Path, ...]

    def numbers(self, task: Task) -> list[float]:
        """The numbers of a task of this family."""
        parts = flatten(task)
        return [parts[path] for path in self.paths]

    def bound(self, task: Task, read: Read) -> Task:
        """Return the task with `Varied` numbers. `task` is the family's first task, possibly with different device
        settings."""
        for place, path in enumerate(self.paths):
            task = replaced(task, path, Varied(f"x{place}", operator.itemgetter(place), read))
        return task

    def joined(self, task: Task) -> "Family | None":
        """Return the family extended by this task; None if the task needs a different program."""
        mine, other = flatten(self.first), flatten(task)
        if mine.keys() != other.keys():
            return None
        differing = [path for path in mine if not is_same(mine[path], other[path])]
        if not all(type(mine[path]) is float and type(other[path]) is float for path in differing):
            return None
        new = [path for path in differing if path not in self.paths]
        return dataclasses.replace(self, paths=(*self.paths, *new)) if new else self


STARTING = ("log_std_init",)
"""Settings of upslope's own networks that affect only the initial parameters, which are inputs of the program
anyway."""


def flatten(part: Any, path: Path = ()) -> dict[Path, Any]:
    """Return the fields of a task and of the dataclasses in it, keyed by path. The environment is not flattened."""
    if path == ("model",):
        settings = {k: v for k, v in part.settings.items() if part.own is not None or k not in STARTING}
        return {path: dataclasses.replace(part, settings=settings)}
    if path == ("environment",) or not dataclasses.is_dataclass(part) or isinstance(part, type):
        return {path: part}
    found: dict[Path, Any] = {path: type(part)}
    for f in dataclasses.fields(part):
        found |= flatten(getattr(part, f.name), (*path, f.name))
    return found


def replaced(part: Any, path: Path, value: Any) -> Any:
    """Return a copy of a dataclass with a different value at a path. Its checks are skipped, because they would need an
    actual number."""
    name, *rest = path
    changed = copy.copy(part)
    object.__setattr__(changed, name, replaced(getattr(part, name), tuple(rest), value) if rest else value)
    return changed


def is_same(a: Any, b: Any) -> bool:
    """Whether two fields are equal. Fields that cannot be compared count as different."""
    try:
        return a is b or (type(a) is type(b) and bool(a == b))
    except Exception:  # arrays or a user's own objects
        return False
