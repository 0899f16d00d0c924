"""Concatenate many arrays into one vector, in a way that is fast on CPUs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

MANY = 1 << 14
"""Minimum total size for which arrays are joined part by part."""


def end_to_end(tree: Any) -> Float[jax.Array, "P"]:
    """Join all arrays into one vector, in the order of `ravel_pytree`. Large trees are joined part by part: on CPUs,
    XLA's concatenation looks up the source of each element, which for a wide layer takes longer than its gradient."""
    leaves = jax.tree.leaves(tree)
    size = sum(x.size for x in leaves)
    if size < MANY:
        return ravel_pytree(tree)[0]
    vector, place = jnp.zeros(size), 0
    for x in leaves:
        vector = jax.lax.dynamic_update_slice(vector, x.ravel(), (place,))
        place += x.size
    return vector
