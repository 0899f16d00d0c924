"""The matrix product of a layer, with a backward pass tuned for CPUs, and optionally with 16-bit operands.

On CPUs, the weight gradient xᵀg spends most of its time transposing the wider operand. This module transposes the
narrower operand first, which changes the speed but not the algorithm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

FULL = "float32"
PRECISION: ContextVar[str] = ContextVar("precision", default=FULL)
"""The precision of the operands in the program being traced."""


@contextmanager
def operands_in(precision: str) -> Iterator[None]:
    """Within this block, traced products round their operands to this precision. Sums always have 32 bits."""
    before = PRECISION.set(precision)
    try:
        yield
    finally:
        PRECISION.reset(before)


def product(x: Float[Array, "... D"], y: Float[Array, "D K"]) -> Float[Array, "... K"]:
    """x y, with operands in the precision of the program being traced."""
    return product_in(PRECISION.get(), x, y)


def product_in(precision: str, x: Float[Array, "... D"], y: Float[Array, "D K"]) -> Float[Array, "... K"]:
    """x y, with operands in this precision."""
    if precision == FULL:
        return x @ y
    return jnp.matmul(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


@jax.custom_vjp
def linear(x: Float[Array, "... D"], weight: Float[Array, "D K"]) -> Float[Array, "... K"]:
    """x W; its gradient with respect to W is xᵀg."""
    return product(x, weight)


def _forwards(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, weight), (x, weight)


def _backwards(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = kept
    rows, slopes = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    precision = PRECISION.get()
    # Created on each call, because JAX caches traces by function and shapes, without regard to the precision.
    outer: Any = jax.lax.platform_dependent(
        rows,
        slopes,
        cpu=lambda x, g: _narrower_first(precision, x, g),
        default=lambda x, g: product_in(precision, x.T, g),
    )
    return product(gradient, weight.T), outer


def _narrower_first(precision: str, rows: Array, slopes: Array) -> Array:
    """xᵀg with the narrower operand transposed first. The barriers keep XLA from folding the transpositions back into
    the product."""
    fixed = jax.lax.optimization_barrier
    if slopes.shape[1] <= rows.shape[1]:
        return fixed(product_in(precision, fixed(slopes.T), rows)).T
    return product_in(precision, fixed(rows.T), slopes)


linear.defvjp(_forwards, _backwards)
