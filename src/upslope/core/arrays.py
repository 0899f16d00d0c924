"""What NumPy and JAX do not spell alike, so that a policy is written once for both.

Learning is compiled. Acting in a Gymnasium environment, one small network a step, is not: to ask a compiled program
takes longer than to compute the answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    AnyArray = jax.Array  # what a program's parts hand to each other
else:
    AnyArray = jax.Array | np.ndarray


STATIC = {"static": True}
"""Metadata of a field that is part of a pytree's structure, not one of its arrays."""
C = TypeVar("C")


@dataclass_transform(frozen_default=True)
def pytree(cls: type[C]) -> type[C]:
    """Make a class a frozen dataclass that JAX can map over."""
    # JAX also builds instances that hold no arrays, which a check of the fields' types would refuse.
    cls.__no_type_check__ = True  # pyright: ignore[reportAttributeAccessIssue]
    return jax.tree_util.register_dataclass(dataclass(frozen=True)(cls))


def is_shape(node: Any) -> bool:
    """Whether a node of a pytree of shapes is one shape."""
    return isinstance(node, tuple) and all(isinstance(n, int) for n in node)


def namespace(x: Any) -> Any:
    """NumPy for its own arrays, else `jax.numpy`."""
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


def sigmoid(x: Any) -> Any:
    """1 / (1 + e⁻ˣ)."""
    return np.exp(log_sigmoid(x)) if isinstance(x, np.ndarray) else jax.nn.sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": lambda x: namespace(x).tanh(x),
    "relu": lambda x: np.maximum(x, 0) if isinstance(x, np.ndarray) else jax.nn.relu(x),
    "silu": lambda x: x * sigmoid(x),
}
"""What a network may have between its layers."""


def raw(leaf: Any) -> Any:
    """An array, of JAX or NumPy, as it is; random keys as the integers that they are."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def typed(x: Any, like: Any) -> Any:
    """The inverse of `raw`, given the leaf that it came from or one of its type."""
    return jax.random.wrap_key_data(x) if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else x


def copied(observation: Any) -> Any:
    """A copy of every array."""
    return observation.copy() if isinstance(observation, np.ndarray) else jax.tree.map(np.copy, observation)


def in_seeds(flat: Any, shape: tuple[int, int]) -> Any:
    """[S·N, …] → [S, N, …]."""
    if isinstance(flat, np.ndarray):  # the usual case, without the price of a walk through a tree
        return flat.reshape(*shape, *flat.shape[1:])
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), flat)
