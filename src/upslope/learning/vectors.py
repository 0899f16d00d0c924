"""Concatenate the arrays of a pytree into one vector, in a way that is fast on CPUs too."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

MIN_PIECEWISE_SIZE = 1 << 14
"""Arrays are copied into the vector one at a time if their total size is at least this."""


def concatenate_leaves(tree: Any) -> Float[jax.Array, "P"]:
    """Flatten and concatenate all arrays, in the order of `ravel_pytree`.

    Large trees are copied one array at a time. On CPUs, XLA's concatenation looks up the source of every element, which
    takes longer for a wide layer than computing its gradient.
    """
    leaves = jax.tree.leaves(tree)
    size = sum(x.size for x in leaves)
    if size < MIN_PIECEWISE_SIZE:
        return ravel_pytree(tree)[0]
    vector, place = jnp.zeros(size), 0
    for x in leaves:
        vector = jax.lax.dynamic_update_slice(vector, x.ravel(), (place,))
        place += x.size
    return vector
