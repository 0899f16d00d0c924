"""Many arrays as one vector, concatenated in the way that is quick on CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

MANY = 1 << 14
"""Numbers from which arrays are joined part by part."""


def end_to_end(tree: Any) -> Float[jax.Array, "P"]:
    """All numbers in one vector, as `ravel_pytree` has them. Where they are many, part by part: XLA's concatenation on
    CPUs asks for each number which part it comes from, which for a wide layer takes longer than its gradient."""
    leaves = jax.tree.leaves(tree)
    size = sum(x.size for x in leaves)
    if size < MANY:
        return ravel_pytree(tree)[0]
    vector, place = jnp.zeros(size), 0
    for x in leaves:
        vector = jax.lax.dynamic_update_slice(vector, x.ravel(), (place,))
        place += x.size
    return vector
