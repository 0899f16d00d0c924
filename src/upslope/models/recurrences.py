"""Run a gated cell over time with as little work as possible inside the loop.

Only the product with the recurrent weights depends on the previous step. The products with the inputs are computed for
all steps at once, and so is the gradient with respect to the recurrent weights, as one product over all steps: plain
differentiation would add an outer product to an accumulator at every step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from equinox.nn import GRUCell, LSTMCell
from jaxtyping import Array, Bool, Float

from upslope.models.products import linear

Gates = Callable[[Array, Array, Any], Any]
"""(sums from the inputs [N, G], sums from the state [N, G], carry) → carry."""


def gru_gates(from_inputs: Array, from_state: Array, hidden: Array) -> Array:
    """h' = n + z ⊙ (h − n), with the reset gate r, the update gate z and n = tanh(i_n + r ⊙ h_n)."""
    inputs, state = jnp.split(from_inputs, 3, axis=-1), jnp.split(from_state, 3, axis=-1)
    reset, update = (jax.nn.sigmoid(x + y) for x, y in zip(inputs[:2], state[:2], strict=True))
    new = jnp.tanh(inputs[2] + reset * state[2])
    return new + update * (hidden - new)


def lstm_gates(from_inputs: Array, from_state: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    """c' = f ⊙ c + i ⊙ g and h' = o ⊙ tanh(c'), with the carry (h, c)."""
    inward, forget, new, outward = jnp.split(from_inputs + from_state, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * carry[1] + jax.nn.sigmoid(inward) * jnp.tanh(new)
    return jax.nn.sigmoid(outward) * jnp.tanh(cell), cell


def gated_over_time(layer: GRUCell | LSTMCell, x: Float[Array, "T N D"], carry: Any, fresh: Bool[Array, "T N"]) -> Any:
    """Run an Equinox cell with biases over T steps of N columns. Return its carry after each step, which is restarted
    where an episode begins."""
    assert layer.bias is not None
    inputs = linear(x, layer.weight_ih.T)
    if isinstance(layer, LSTMCell):
        return run_cell(lstm_gates, layer.weight_hh, layer.bias, jnp.zeros_like(layer.bias), inputs, carry, fresh)
    assert layer.bias_n is not None
    of_state = jnp.concatenate([jnp.zeros(2 * layer.hidden_size, layer.bias_n.dtype), layer.bias_n])
    return run_cell(gru_gates, layer.weight_hh, layer.bias, of_state, inputs, carry, fresh)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_cell(
    gates: Gates,
    weight: Float[Array, "G H"],
    bias: Float[Array, "G"],
    bias_of_state: Float[Array, "G"],
    inputs: Float[Array, "T N G"],
    carry: Any,
    fresh: Bool[Array, "T N"],
) -> Any:
    """Return the carry after each step, [T, N, H] per array.

    The first array of a carry is the state that the recurrent weights multiply. Only reverse-mode gradients,
    and derivatives of these, are supported.
    """
    return _forwards(gates, weight, bias, bias_of_state, inputs, carry, fresh)[0]


def _forwards(
    gates: Gates, weight: Array, bias: Array, bias_of_state: Array, inputs: Array, carry: Any, fresh: Array
) -> tuple[Any, Any]:
    """Run the cell, and keep what the backward pass needs."""

    def one(before: Any, now: tuple[Array, Array]) -> tuple[Any, Any]:
        arriving, begins = now
        kept = restarted_where(begins, before)
        product = jax.tree.leaves(kept)[0] @ weight.T
        after = gates(arriving + bias, product + bias_of_state, kept)
        return after, (after, product)

    after, products = jax.lax.scan(one, carry, (inputs, fresh))[1]
    return after, (weight, bias, bias_of_state, inputs, carry, fresh, after, products)


def _backwards(gates: Gates, residuals: Any, slopes: Any) -> tuple[Any, ...]:
    """Compute the gradients, with only the recurrence itself inside the loop."""
    weight, bias, bias_of_state, inputs, carry, fresh, after, products = residuals
    before = jax.tree.map(lambda first, then: jnp.concatenate([first[None], then[:-1]]), carry, after)

    def one(later: Any, now: Any) -> tuple[Any, Any]:
        slope, arriving, begins, before, product = now
        _, pull = jax.vjp(gates, arriving + bias, product + bias_of_state, restarted_where(begins, before))
        of_inputs, of_state, of_kept = pull(jax.tree.map(jnp.add, slope, later))
        leaves, structure = jax.tree.flatten(of_kept)
        of_kept = structure.unflatten([leaves[0] + of_state @ weight, *leaves[1:]])
        return restarted_where(begins, of_kept), (of_inputs, of_state)

    steps = slopes, inputs, fresh, before, products
    of_carry, (of_inputs, of_state) = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, carry), steps, reverse=True)
    hidden = restarted_where(fresh, jax.tree.leaves(before)[0])
    of_weight = of_state.reshape(-1, weight.shape[0]).T @ hidden.reshape(-1, weight.shape[1])
    return of_weight, of_inputs.sum((0, 1)), of_state.sum((0, 1)), of_inputs, of_carry, None


run_cell.defvjp(_forwards, _backwards)


def restarted_where(begins: Bool[Array, "... N"], carry: Any) -> Any:
    """Set the carry to zero in columns where an episode begins."""
    return jax.tree.map(lambda c: jnp.where(begins[..., None], 0.0, c), carry)
