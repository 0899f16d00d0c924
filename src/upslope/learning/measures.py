"""Sums and correlations over the samples of a batch, for the health metrics."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped


def feature_statistics(features: Float[Array, "B D"], valid: Bool[Array, "B"]) -> Float[Array, "5"]:
    """Return, in this order, the largest |mean|, the smallest and the largest variance, the largest |value|, and the
    share of constant features."""
    # Sums are computed as products, because a sum's rounding depends on the operations with which XLA fuses it.
    weight = valid / jnp.maximum(jnp.sum(valid), 1)
    centre = weight @ features
    variance = weight @ jax.lax.optimization_barrier((features - centre) ** 2)
    largest = jnp.max(jnp.where(valid[:, None], jnp.abs(features), 0.0))
    is_constant = jnp.mean(variance < 1e-12, dtype=jnp.float32)
    return jnp.stack([jnp.max(jnp.abs(centre)), jnp.min(variance), jnp.max(variance), largest, is_constant])


ROUNDING = 1e-5
"""A generous bound on the relative error of a target that is computed in 32 bits."""


def correlations(pairs: list[Any]) -> Float[Array, "K"]:
    """Pearson's correlation of every (x, y, where); nan if x or y varies by no more than rounding error."""
    x, y, where = jax.lax.optimization_barrier(
        tuple(jnp.stack([jnp.ravel(x) for x in part]) for part in zip(*pairs, strict=True))
    )
    count = row_sums(where)

    def average(z: Array) -> Array:
        return row_sums(jnp.where(where, z, 0.0)) / count

    def centred(z: Array) -> tuple[Array, Array, Array]:
        """z − mean, its variance, and whether the variance exceeds rounding error."""
        square, z = average(z**2), z - average(z)[:, None]
        variance = average(z**2)
        return z, variance, variance > ROUNDING**2 * square

    (x, x_variance, x_varies), (y, y_variance, y_varies) = centred(x), centred(y)
    return average(x * y) / jnp.where(x_varies & y_varies, jnp.sqrt(x_variance * y_variance), jnp.nan)


def saturation(units: Float[Array, "B K"], activation: str, valid: Bool[Array, "B"]) -> Float[Array, ""]:
    """The share of units that are saturated (|tanh| > 0.99) or dead (zero output on every sample). `units` holds the
    pre-activations."""
    if activation != "tanh":
        return jnp.mean(jnp.max(units, axis=0, initial=-jnp.inf, where=valid[:, None]) <= 0, dtype=jnp.float32)
    is_saturated = jnp.mean(jnp.abs(jnp.tanh(units)) > 0.99, axis=1, dtype=jnp.float32)
    return jnp.sum(jnp.where(valid, is_saturated, 0.0)) / jnp.sum(valid)


def row_sums(x: Shaped[Array, "K B"]) -> Float[Array, "K"]:
    """The sum of each row, computed as a matrix product. This is several times faster and rounds the same in every
    program."""
    return jax.lax.optimization_barrier(x.astype(jnp.float32)) @ jnp.ones(x.shape[1])


def prepend_false(x: Bool[Array, "_ N"]) -> Bool[Array, "T N"]:
    """Prepend a row of False."""
    return jnp.concatenate([jnp.zeros_like(x[:1], shape=(1, *x.shape[1:])), x])
