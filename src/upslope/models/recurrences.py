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

Gates = Callable[[Any, Array, Array, Any], Any]
"""(bias, what comes from the inputs [N, G], what comes from the state [N, G], carry) → carry."""


def gru_gates(bias: Array, inputs: Array, recurrent: Array, hidden: Array) -> Array:
    """h' = n + z ⊙ (h − n), with the reset gate r, the update gate z and n = tanh(i_n + r ⊙ (h_n + bias))."""
    from_input, from_state = jnp.split(inputs, 3, axis=-1), jnp.split(recurrent, 3, axis=-1)
    reset, update = (jax.nn.sigmoid(x + y) for x, y in zip(from_input[:2], from_state[:2], strict=True))
    new = jnp.tanh(from_input[2] + reset * (from_state[2] + bias))
    return new + update * (hidden - new)


def lstm_gates(bias: tuple[()], inputs: Array, recurrent: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    """c' = f ⊙ c + i ⊙ g and h' = o ⊙ tanh(c'), with the carry (h, c)."""
    inward, forget, new, outward = jnp.split(inputs + recurrent, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * carry[1] + jax.nn.sigmoid(inward) * jnp.tanh(new)
    return jax.nn.sigmoid(outward) * jnp.tanh(cell), cell


def gated_over_time(layer: GRUCell | LSTMCell, x: Float[Array, "T N D"], carry: Any, fresh: Bool[Array, "T N"]) -> Any:
    """The carry of an Equinox cell after each of T steps of N columns, restarted where an episode begins."""
    inputs = linear(x.reshape(-1, x.shape[-1]), layer.weight_ih.T).reshape(*x.shape[:2], -1) + layer.bias
    if isinstance(layer, LSTMCell):
        return recurrent(lstm_gates, layer.weight_hh, (), inputs, carry, fresh)
    return recurrent(gru_gates, layer.weight_hh, layer.bias_n, inputs, carry, fresh)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrent(
    gates: Gates,
    weight: Float[Array, "G H"],
    bias: Any,
    inputs: Float[Array, "T N G"],
    carry: Any,
    fresh: Bool[Array, "T N"],
) -> Any:
    """The carry after each step, [T, N, H] per array. Its first array is the state that the weights multiply."""
    return _forwards(gates, weight, bias, inputs, carry, fresh)[0]


def _forwards(gates: Gates, weight: Array, bias: Any, inputs: Array, carry: Any, fresh: Array) -> tuple[Any, Any]:
    """Run the cell, and keep what the backward pass needs."""

    def one(carry: Any, now: tuple[Array, Array]) -> tuple[Any, Any]:
        arrives, begins = now
        kept = jax.tree.map(lambda c: jnp.where(begins[:, None], 0.0, c), carry)
        returns = jax.tree.leaves(kept)[0] @ weight.T
        carry = gates(bias, arrives, returns, kept)
        return carry, (carry, kept, returns)

    after, kept, returns = jax.lax.scan(one, carry, (inputs, fresh))[1]
    return after, (weight, bias, inputs, fresh, kept, returns)


def _backwards(gates: Gates, residuals: Any, slopes: Any) -> tuple[Any, ...]:
    """The gradients, with only the recurrence itself inside the loop."""
    weight, bias, inputs, fresh, kept, returns = residuals

    def one(given: tuple[Any, Any], now: Any) -> tuple[Any, Any]:
        later, of_bias = given
        slope, arrives, begins, before, came = now
        _, pull = jax.vjp(gates, bias, arrives, came, before)
        mine, of_inputs, of_returns, of_kept = pull(jax.tree.map(jnp.add, slope, later))
        leaves, structure = jax.tree.flatten(of_kept)
        of_kept = structure.unflatten([leaves[0] + of_returns @ weight, *leaves[1:]])
        earlier = jax.tree.map(lambda c: jnp.where(begins[:, None], 0.0, c), of_kept)
        return (earlier, jax.tree.map(jnp.add, of_bias, mine)), (of_inputs, of_returns)

    nothing = jax.tree.map(lambda x: jnp.zeros_like(x[0]), kept), jax.tree.map(jnp.zeros_like, bias)
    steps = slopes, inputs, fresh, kept, returns
    (of_carry, of_bias), (of_inputs, of_returns) = jax.lax.scan(one, nothing, steps, reverse=True)
    hidden = jax.tree.leaves(kept)[0]
    of_weight = of_returns.reshape(-1, weight.shape[0]).T @ hidden.reshape(-1, weight.shape[1])
    return of_weight, of_bias, of_inputs, of_carry, None


recurrent.defvjp(_forwards, _backwards)
