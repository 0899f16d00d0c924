"""Split one seed over several devices along the mesh axis `ENVIRONMENTS`. Results equal those of one device up to
rounding.

    act     each device steps its share of the columns, with the random numbers that they would have on one device; then
            the facts [T, N] are gathered, so that every device has the whole rollout
    weigh   the same on every device; where rows are independent (V, log π), each device computes only its share of them
    move    every device draws the same minibatches; each differentiates its share of the rows, and then the gradients
            and the means that determine an early stop are summed

A seed thus has the same minibatches on any number of devices, and everything that depends on a whole batch
(normalisers, standardised weights, groups of episodes, bonuses, a user's own parts) sees all of it. Results differ only
because a sum over the rows adds its terms in a different order, and because a product with fewer rows may round
differently. Each device holds the whole rollout. Only the environments' states, the work, and the activations are
split.

Outside such a mesh, the functions of this module have no effect.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Integer

from upslope.learning.devices import ENVIRONMENTS
from upslope.learning.two_devices import as_words, from_words


def num_shares() -> int:
    """The number of devices over which the seed is split; 1 if it is not split."""
    try:
        return jax.lax.axis_size(ENVIRONMENTS)
    except NameError:  # no such axis
        return 1


def own_part(tree: Any, axis: int = 0) -> Any:
    """This device's share of arrays that cover the columns of all devices."""
    shares = num_shares()
    if shares == 1:
        return tree

    def one(x: Array) -> Array:
        size = x.shape[axis] // shares
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(ENVIRONMENTS) * size, size, axis)

    return jax.tree.map(one, tree)


def of_all(tree: Any) -> Any:
    """Repeat this device's columns until there are as many as all devices have together. This is for code that depends
    only on the number of columns."""
    shares = num_shares()
    return tree if shares == 1 else jax.tree.map(lambda x: jnp.concatenate([x] * shares), tree)


def gathered(tree: Any, axis: int = 0) -> Any:
    """Concatenate the parts from all devices along an axis. Every device receives the result."""
    shares = num_shares()
    if shares == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    wide = [x for x in leaves if is_packable(x)]
    # Send these arrays in a single message, because each message takes about 50 microseconds regardless of its size.
    words = jnp.concatenate([as_words(x) for x in wide]) if wide else jnp.zeros(0, jnp.uint32)
    received, place = jax.lax.all_gather(words, ENVIRONMENTS), 0
    joined = []
    for x in leaves:
        if not is_packable(x):
            joined.append(jax.lax.all_gather(x, ENVIRONMENTS, axis=axis, tiled=True))
            continue
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        parts = [from_words(received[share, place : place + x.size], shape) for share in range(shares)]
        joined.append(jnp.concatenate(parts, axis=axis))
        place += x.size
    return jax.tree.unflatten(structure, joined)


def is_packable(x: Array) -> bool:
    """Whether an array can be sent as 32-bit words."""
    return x.dtype == jnp.bool_ or x.dtype.itemsize == 4


def summed(tree: Any) -> Any:
    """Sum arrays of floats over all devices, in a single message."""
    if num_shares() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    total, place, found = jax.lax.psum(jnp.concatenate([x.ravel() for x in leaves]), ENVIRONMENTS), 0, []
    for x in leaves:
        found.append(total[place : place + x.size].reshape(x.shape))
        place += x.size
    return jax.tree.unflatten(structure, found)


def own_rows(tree: Any) -> tuple[Any, Bool[Array, "R"] | None]:
    """This device's share of rows [B, …] that are complete on every device, and a mask of its own rows.

    If the number of devices does not divide B, the last devices repeat the last row, and the mask excludes these
    copies. The mask is None if there are no copies."""
    shares, num_rows = num_shares(), jax.tree.leaves(tree)[0].shape[0]
    if shares == 1:
        return tree, None
    if num_rows % shares == 0:
        return own_part(tree), None
    place = own_places(num_rows, shares)
    return jax.tree.map(lambda x: jnp.take(x, place, axis=0, mode="clip"), tree), place < num_rows


def own_valid(valid: Bool[Array, "R ..."], is_own: Bool[Array, "R"] | None) -> Bool[Array, "R ..."]:
    """The mask of valid samples among this device's own rows."""
    return valid if is_own is None else valid & is_own.reshape(-1, *(1,) * (valid.ndim - 1))


def own_places(num_rows: int, shares: int) -> Integer[Array, "R"]:
    """The indices of this device's rows. Indices from `num_rows` upwards stand for copies of the last row."""
    size = -(-num_rows // shares)
    return jax.lax.axis_index(ENVIRONMENTS) * size + jnp.arange(size)


def rows_shared(function: Callable[[Any], Any], rows: Any) -> Any:
    """Compute `function(rows)` for a function that acts on each row independently. Each device computes a share of the
    rows."""
    if num_shares() == 1:
        return function(rows)
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    found = gathered(function(own_rows(rows)[0]))
    return jax.tree.map(lambda x: x[:num_rows], found)


def columns_shared(function: Callable[[Any, Any], Any], over_time: Any, now: Any) -> Any:
    """Compute `function(over_time, now)` for arrays [T, N, …] and [N, …], with a share of the columns on each device.

    The function must act on each column independently and return arrays [T, N, …]. If the number of devices does not
    divide N, every device computes all columns."""
    if num_shares() == 1 or jax.tree.leaves(over_time)[0].shape[1] % num_shares():
        return function(over_time, now)
    return gathered(function(own_part(over_time, axis=1), own_part(now)), axis=1)
