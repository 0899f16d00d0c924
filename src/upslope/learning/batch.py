"""Convert a rollout into a batch: facts and credit [T, N] → units from which minibatches are drawn.

Without memory, a unit is one step, and a batch has B = T·N units. With memory, a unit is a sequence of L consecutive
steps, and its initial carry is computed with the parameters from before the update.
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
from upslope.learning.split import columns_shared
from upslope.models.agent import Agent, no_fresh
from upslope.models.model import Carry, Memory, Model, Outputs, allowed, has_memory, unroll

NEVER = 1e6
"""The value of log μ in padding. It keeps the ratio π/μ finite there, however probable action 0 is under the
policy."""


class Batch(NamedTuple):
    """B units: arrays [B] if a unit is one step, [B, L] if it is a sequence of L steps."""

    features: Any
    action: Shaped[Array, "B ..."]
    behaviour_log_prob: Float[Array, "B ..."]
    weight: Float[Array, "B ..."]
    target: Float[Array, "B ..."]
    valid: Bool[Array, "B ..."]
    fresh: Bool[Array, "B ..."]
    """Mask of the steps at which an episode begins."""
    carry: Carry
    """The model's memory at the start of each unit; () without memory."""
    old_policy: Distribution
    action_mask: Bool[Array, "B ... M"] | None = None
    """Mask of the choices that were allowed."""
    old_value: Float[Array, "B ..."] | None = None
    """V before the update; present only if the critic's loss is clipped."""
    shift: Float[Array, "B ... K"] | None = None
    """The shift added to the policy's mean when the ratio is computed (Rahman & Xue 2022)."""
    reference: Distribution | None = None
    """The reference policy, if any."""


def beginnings(rollout: Rollout, memory: Memory) -> Bool[Array, "T N"]:
    """Mask of the steps at which an episode begins; its first row comes from the memory."""
    return jnp.concatenate([memory.fresh[None], ends(rollout)[:-1]])


def batch_of(
    agent: Agent, rollout: Rollout, credit: Credit, memory: Memory, length: int | None, vmapped: bool
) -> Batch:
    """Create the batch, computing the features and the old policy only once. `length` is L, by default the whole
    rollout."""
    valid = rollout.valid
    length = min(length or len(valid), len(valid)) if has_memory(agent.model) else None

    def units(x: Array) -> Array:
        return as_units(masked(x, valid), length)

    prepared = masked(agent.features(rollout.observation), valid)
    features = jax.tree.map(lambda x: as_units(x, length), prepared)
    fresh = as_units(beginnings(rollout, memory), length)
    carry = () if length is None else carries_at(agent.model, prepared, memory, rollout, length)
    # Allow every choice in padding, because a policy without any allowed action is nan.
    mask = None if rollout.action_mask is None else ~units(~rollout.action_mask)
    inputs = (features, carry, fresh, mask)
    return Batch(
        features=features,
        action=units(rollout.action),
        behaviour_log_prob=as_units(masked(rollout.behaviour_log_prob, valid, NEVER), length),
        weight=units(credit.weight),
        target=units(credit.target),
        valid=as_units(valid, length),
        fresh=fresh,
        carry=carry,
        old_policy=in_blocks(lambda rows: outputs_of(agent.model, *rows).policy.density(), inputs, vmapped),
        action_mask=mask,
    )


def masked(tree: Any, valid: Bool[Array, "T N"], value: float = 0.0) -> Any:
    """Replace padding in arrays [T, N, …] by zeros or another value.

    Padding may contain anything, and a gradient through nan or infinity is nan even where the loss is masked."""

    def one(x: Array) -> Array:
        return jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, jnp.asarray(value, x.dtype))

    return jax.tree.map(one, tree)


def inputs_of(batch: Batch) -> tuple[Any, Carry, Array, Array | None]:
    """Extract the inputs of `outputs_of` from a batch."""
    return batch.features, batch.carry, batch.fresh, batch.action_mask


def as_units(x: Shaped[Array, "T N ..."], length: int | None) -> Shaped[Array, "B ..."]:
    """Reshape [T, N] to [B] without memory, or to [B, L] with memory. The last sequences are padded with zeros, which
    are marked as invalid."""
    if length is None:
        return x.reshape(-1, *x.shape[2:])
    x = jnp.concatenate([x, jnp.zeros((-len(x) % length, *x.shape[1:]), x.dtype)])
    cut = x.reshape(-1, length, *x.shape[1:])  # [T/L, L, N]
    return jnp.moveaxis(cut, 1, 2).reshape(-1, length, *x.shape[2:])


def in_time(x: Shaped[Array, "B ..."], shape: tuple[int, ...], length: int | None) -> Shaped[Array, "M ..."]:
    """The inverse of `as_units`, with time and columns flattened to rows t·N + n."""
    if length is None:
        return x
    steps, columns = shape
    cut = x.reshape(-1, columns, length, *x.shape[2:])
    return jnp.moveaxis(cut, 1, 2).reshape(-1, *x.shape[2:])[: steps * columns]


def carries_at(model: Model, features: Any, memory: Memory, rollout: Rollout, length: int) -> Carry:
    """The carry at the start of each sequence, computed with the current parameters. No gradient flows through it."""
    over_time = features, beginnings(rollout, memory)
    first, after = (
        memory.carry,
        columns_shared(lambda x, carry: unroll(model, x[0], carry, x[1])[1], over_time, memory.carry),
    )
    starts = jax.tree.map(lambda x, then: jnp.concatenate([x[None], then[length - 1 : -1 : length]]), first, after)
    return jax.lax.stop_gradient(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), starts))


def outputs_of(
    model: Model,
    features: Any,
    carry: Carry,
    fresh: Bool[Array, "B ..."],
    mask: Bool[Array, "B ... M"] | None,
) -> Outputs:
    """The model's outputs for the units of a batch, in the units' shape, with the policy restricted to allowed
    actions."""
    if not has_memory(model):
        outputs = model.step(features, (), no_fresh(features))[0]
        return outputs._replace(policy=allowed(outputs.policy, mask))
    over_time: Callable[[Any], Any] = lambda tree: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), tree)  # noqa: E731
    return over_time(unroll(model, over_time(features), carry, over_time(fresh), over_time(mask))[0])
