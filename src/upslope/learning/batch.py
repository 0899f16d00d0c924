"""A rollout as a batch: facts and credit [T, N] → what minibatches are drawn from.

Without memory the unit of a minibatch is one step, and a batch has B = T·N of them. With memory it is a stretch of L
steps in a row, whose carry is where the parameters before the update would have it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from upslope.core.distributions import Distribution
from upslope.core.estimators import ends
from upslope.core.types import Credit, Rollout
from upslope.learning.blocks import in_blocks
from upslope.models.agent import Agent
from upslope.models.model import Carry, Model, Outputs, has_memory, unroll


class Batch(NamedTuple):
    """Units [B], each one step, or [B, L], each a stretch of L steps."""

    features: Any
    action: Shaped[Array, "B ..."]
    behaviour_log_prob: Float[Array, "B ..."]
    weight: Float[Array, "B ..."]
    target: Float[Array, "B ..."]
    valid: Bool[Array, "B ..."]
    fresh: Bool[Array, "B ..."]
    """Where an episode begins."""
    carry: Carry
    """The model's memory at the start of each unit; () without memory."""
    old_policy: Distribution


def beginnings(rollout: Rollout) -> Bool[Array, "T N"]:
    """Where an episode begins within the rollout. Its first row is no beginning: the carry handed over has been
    restarted where it needs to be."""
    over = ends(rollout)
    return jnp.concatenate([jnp.zeros_like(over[:1]), over[:-1]])


def batch_of(agent: Agent, rollout: Rollout, credit: Credit, memory: Carry, length: int | None, vmapped: bool) -> Batch:
    """The batch, with the features and the old policy computed once. `length` is L; by default all of the rollout."""
    valid = rollout.valid
    length = (length or valid.shape[0]) if has_memory(agent.model) else 1

    def units(x: Array) -> Array:
        # Padding may hold anything, and a gradient through nan is nan even where the loss is masked.
        is_row = valid.reshape(valid.shape + (1,) * (x.ndim - 2))
        return as_units(jnp.where(is_row, x, jnp.zeros((), x.dtype)), length)

    prepared = agent.features(rollout.observation)
    features = jax.tree.map(units, prepared)
    fresh = as_units(beginnings(rollout), length)
    carry = carries_at(agent.model, prepared, memory, rollout, length)
    inputs = (features, carry, fresh)
    return Batch(
        features=features,
        action=units(rollout.action),
        behaviour_log_prob=units(rollout.behaviour_log_prob),
        weight=units(credit.weight),
        target=units(credit.target),
        valid=as_units(valid, length),
        fresh=fresh,
        carry=carry,
        old_policy=in_blocks(lambda rows: outputs_of(agent.model, *rows).policy, inputs, vmapped),
    )


def as_units(x: Shaped[Array, "T N ..."], length: int) -> Shaped[Array, "B ..."]:
    """[T, N] → [B] where L = 1, else [B, L]."""
    if length == 1:
        return x.reshape(-1, *x.shape[2:])
    cut = x.reshape(-1, length, *x.shape[1:])  # [T/L, L, N]
    return jnp.moveaxis(cut, 1, 2).reshape(-1, length, *x.shape[2:])


def in_time(x: Shaped[Array, "B ..."], shape: tuple[int, ...], length: int) -> Shaped[Array, "M ..."]:
    """The inverse of `as_units`, with time and columns flattened: row t·N + n."""
    if length == 1:
        return x
    steps, columns = shape
    cut = x.reshape(steps // length, columns, length, *x.shape[2:])
    return jnp.moveaxis(cut, 1, 2).reshape(steps * columns, *x.shape[2:])


def carries_at(model: Model, features: Any, memory: Carry, rollout: Rollout, length: int) -> Carry:
    """The carry at the start of each stretch, by the parameters as they are; no gradient crosses it."""
    if not has_memory(model):
        return ()
    fresh = beginnings(rollout)
    after = unroll(model, features, memory, fresh)[1]
    starts = jax.tree.map(lambda first, x: jnp.concatenate([first[None], x[length - 1 : -1 : length]]), memory, after)
    return jax.lax.stop_gradient(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), starts))


def outputs_of(model: Model, features: Any, carry: Carry, fresh: Bool[Array, "B ..."]) -> Outputs:
    """The model's outputs for units of a batch, in their shape."""
    if not has_memory(model):
        return model.step(features, (), fresh)[0]
    over_time: Callable[[Any], Any] = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)  # noqa: E731
    return over_time(unroll(model, over_time(features), carry, over_time(fresh))[0])
