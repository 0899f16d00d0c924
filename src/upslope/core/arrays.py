"""Array functions that work on both NumPy and JAX arrays, so that a policy is written only once.

Learning is compiled. Acting in a Gymnasium environment is not: each step evaluates one small network, and dispatching
a compiled program takes longer than computing the result in NumPy.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    AnyArray = jax.Array  # inside a compiled program
else:
    AnyArray = jax.Array | np.ndarray


STATIC = {"static": True}
"""Metadata that marks a field as part of a pytree's structure rather than one of its arrays."""
C = TypeVar("C")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[C]) -> type[C]:
    """Make a class a frozen dataclass that JAX can map over."""
    # JAX also builds instances whose fields are not arrays, which a runtime type check would reject.
    cls.__no_type_check__ = True  # pyright: ignore[reportAttributeAccessIssue]
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


def is_shape(node: Any) -> bool:
    """Whether a node of a pytree of shapes is a shape, i.e. a tuple of integers."""
    return isinstance(node, tuple) and all(isinstance(n, int) for n in node)


def shaped_like(shapes: Any, observation: Any, ignored: Sequence[str] = (), prefix: str = "") -> Any:
    """Restructure an observation to match its shapes: mappings become dictionaries, and lists and tuples become tuples.

    Parts under the keys `ignored`, written as `outer/inner`, are omitted, as are ignored components of a vector.

    Raises:
        ValueError: the keys or the number of parts differ.
    """
    if is_shape(shapes):
        return without_components(shapes, observation, ignored, prefix)

    def is_ignored(key: Any) -> bool:
        return any(each == f"{prefix}{key}" or each.startswith(f"{prefix}{key}/") for each in ignored)

    if isinstance(shapes, dict):
        if not isinstance(observation, Mapping) or not shapes.keys() <= observation.keys():
            raise ValueError(f"it must have the keys {', '.join(map(repr, shapes))}")
        if any(key not in shapes and not is_ignored(key) for key in observation):
            raise ValueError(f"it must have only the keys {', '.join(map(repr, shapes))}")
        return {key: shaped_like(shape, observation[key], ignored, f"{prefix}{key}/") for key, shape in shapes.items()}
    if not isinstance(observation, tuple | list):
        raise ValueError("it must be a tuple")
    parts = [(i, part) for i, part in enumerate(observation) if f"{prefix}{i}" not in ignored]
    if len(parts) != len(shapes):
        raise ValueError(f"it must have {len(shapes)} parts")
    pairs = zip(shapes, parts, strict=True)
    return tuple(shaped_like(shape, part, ignored, f"{prefix}{i}/") for shape, (i, part) in pairs)


def without_components(shape: tuple[int, ...], x: Any, ignored: Sequence[str], prefix: str) -> Any:
    """Remove the ignored components, whose keys are `prefix` plus their index, from a vector or a batch of vectors. A
    vector that already lacks them is returned unchanged."""
    if len(shape) != 1:
        return x
    left_out = [i for i in range(shape[0] + len(ignored)) if f"{prefix}{i}" in ignored]
    has_all = left_out and np.shape(x)[-1:] == (shape[0] + len(left_out),)
    return np.delete(np.asarray(x), left_out, axis=-1) if has_all else x


def namespace(x: Any) -> Any:
    """NumPy for NumPy arrays, otherwise `jax.numpy`."""
    return np if isinstance(x, np.ndarray) else jnp


def log_softmax(x: Any) -> Any:
    """log(eˣ / Σ eˣ) over the last axis."""
    if not isinstance(x, np.ndarray):
        return jax.nn.log_softmax(x)
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_sigmoid(x: Any) -> Any:
    """log(1 / (1 + e⁻ˣ))."""
    return -np.logaddexp(0, -x) if isinstance(x, np.ndarray) else jax.nn.log_sigmoid(x)


def softplus(x: Any) -> Any:
    """log(1 + eˣ)."""
    return np.logaddexp(0, x) if isinstance(x, np.ndarray) else jax.nn.softplus(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e⁻ˣ)."""
    return np.exp(log_sigmoid(x)) if isinstance(x, np.ndarray) else jax.nn.sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: namespace(x).tanh(x),
    "relu": lambda x: np.maximum(x, 0) if isinstance(x, np.ndarray) else jax.nn.relu(x),
    "silu": lambda x: x * sigmoid(x),
}
"""Activation functions by name, for NumPy and JAX arrays."""


def raw(leaf: Any) -> Any:
    """Return an array unchanged; for random keys, return their integer data."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def typed(x: Any, like: Any) -> Any:
    """The inverse of `raw`, given a leaf of the original type."""
    return jax.random.wrap_key_data(x) if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else x


def in_rows(x: Any) -> list[Any]:
    """Split an array, or an array of random keys, into its rows; copying via NumPy avoids compiling a program."""
    return [typed(row, x) for row in jax.device_put(list(np.asarray(raw(x))))]


def rows_at(tree: Any, index: Any) -> Any:
    """Index the first axis of each array by a number, a slice or an array. Copying via NumPy avoids compiling a program
    for each shape."""
    return jax.tree.map(lambda x: jax.device_put(np.asarray(x)[index]), tree)


def num_bytes(tree: Any) -> int:
    """The total size in bytes of the arrays, or shapes of arrays, in a pytree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def over_parts(function: Callable[..., Any], *observations: Any) -> Any:
    """Apply a function to each array of observations: NumPy arrays, or dictionaries and tuples of them at any depth.

    `jax.tree.map` does the same, but its overhead would slow down every step of an environment.
    """
    first = observations[0]
    if isinstance(first, np.ndarray):
        return function(*observations)
    if isinstance(first, dict):
        return {key: over_parts(function, *(each[key] for each in observations)) for key in first}
    return tuple(over_parts(function, *parts) for parts in zip(*observations, strict=True))


def copied(observation: Any) -> Any:
    """Copy every array of an observation."""
    return over_parts(np.ndarray.copy, observation)


def in_seeds(flat: Any, shape: tuple[int, int]) -> Any:
    """[S·N, …] → [S, N, …]."""
    return over_parts(lambda x: x.reshape(*shape, *x.shape[1:]), flat)


def block_by_block(function: Callable[[Any], Any], rows: Any, size: int) -> Any:
    """`function(rows)`, computed for `size` rows at a time, for a function that acts on each row independently. The
    number of rows must be a multiple of `size`."""
    count = len(jax.tree.leaves(rows)[0])
    blocks = jax.tree.map(lambda x: x.reshape(count // size, size, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), jax.lax.map(function, blocks))


def where_seeds(mask: np.ndarray, chosen: Any, otherwise: Any) -> Any:
    """Select per seed: `chosen` where the mask [S] is true, `otherwise` elsewhere. NumPy is used to avoid compiling."""

    def pick(a: Any, b: Any) -> np.ndarray:
        return np.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), np.asarray(a), np.asarray(b))

    return jax.tree.map(pick, chosen, otherwise)


def all_finite(arrays: Sequence[np.ndarray]) -> bool:
    """Whether all real numbers in the arrays are finite. The result may also be False if only a square overflows."""
    # A sum of squares is finite only if all of its terms are, and it is quicker to test.
    return all(math.isfinite(np.vdot(x, x)) for x in arrays if x.dtype.kind == "f")
