"""Health metrics of parts that only some models have: action masks, a memory, image encoders, and several
observation keys.

They are measured on a few samples and do not affect the metrics that every run has.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upslope.models.composed import Branch, Composed
from upslope.models.encoders import ObservationEncoder
from upslope.models.model import has_memory, unroll

PARTS = "health_of_parts"
"""Name of the vector of these metrics among an update's metrics."""
NAMES = ("forbidden_mass", "memory_saturated", "memory_dead", "encoder_dead", "key_share", "key_index")
SAMPLES = 128
"""Number of samples used, in whole sequences if there is a memory."""
STILL = 1e-6
"""Variances below this count as 0. This limit corresponds to a standard deviation of 0.001, for numbers of magnitude at
most 1."""


def has_parts(model: Any, batch: Any) -> bool:
    """Whether the model or the batch has any part that these metrics cover."""
    return bool(
        batch.action_mask is not None or has_memory(model) or image_branches(model) or len(keyed_features(model)) > 1
    )


def of_parts(model: Any, batch: Any) -> Float[Array, "6"]:
    """The metrics in the order of `NAMES`, for the model after the update, measured on the first units of the batch."""
    few = first_units(batch)
    unknown = jnp.float32(jnp.nan)
    forbidden = saturated = dead = unknown
    if batch.action_mask is not None or has_memory(model):
        policy, carries, valid = over_time(model, few)
        if few.action_mask is not None:
            forbidden = forbidden_mass(policy, few)
        if has_memory(model):
            saturated, dead = of_carries(carries, valid)
    share, index = of_keys(model, few) if len(keyed_features(model)) > 1 else (unknown, unknown)
    return jnp.stack([forbidden, saturated, dead, of_encoders(model, few), share, index])


def first_units(batch: Any) -> Any:
    """The first units of a batch, with about `SAMPLES` samples."""
    count = min(len(batch.valid), max(1, SAMPLES // batch.valid[0].size))
    return jax.tree.map(lambda x: x[:count], batch)


def over_time(model: Any, batch: Any) -> tuple[Any, Any, Bool[Array, "L B"]]:
    """The unmasked policy in the units' shape, the carry after each step [L, B, …], and the mask of valid steps."""
    if not has_memory(model):
        return model.step(batch.features, (), jnp.zeros(len(batch.valid), bool))[0].policy, (), batch.valid[None]
    features, fresh = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (batch.features, batch.fresh))
    outputs, carries = unroll(model, features, batch.carry, fresh)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), outputs.policy), carries, batch.valid.T


def forbidden_mass(policy: Any, batch: Any) -> Float[Array, ""]:
    """Mean probability of forbidden actions under the policy without its mask.

    A masked policy is π(a) / Z, where Z is the allowed mass. Z = π(a) / π_masked(a) can therefore be computed from any
    allowed action.
    """
    allowed = jnp.exp(policy.log_prob(batch.action) - policy.masked(batch.action_mask).log_prob(batch.action))
    return jnp.sum(jnp.where(batch.valid, 1 - allowed, 0.0)) / jnp.sum(batch.valid)


def of_carries(carries: Any, valid: Bool[Array, "L B"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return two shares of the memory's numbers: those at a bound, 0.99 < |h| ≤ 1, in all steps, and those that do not
    vary over steps and columns."""
    rows = jnp.concatenate([x.reshape(valid.size, -1) for x in jax.tree.leaves(carries)], axis=1)
    where = valid.reshape(-1, 1)
    size = jnp.abs(rows)
    is_bound = jnp.all(jnp.where(where, (size > 0.99) & (size <= 1.0), True), axis=0)
    return jnp.mean(is_bound, dtype=jnp.float32), still(rows, where)


def still(x: Float[Array, "B F"], where: Bool[Array, "B 1"]) -> Float[Array, ""]:
    """The share of columns that do not vary."""
    return jnp.mean(variances(x, where) < STILL, dtype=jnp.float32)


def variances(x: Float[Array, "B F"], where: Bool[Array, "B 1"]) -> Float[Array, "F"]:
    """The variance of each column over the valid rows."""
    count = jnp.maximum(jnp.sum(where), 1)
    centred = x - jnp.sum(jnp.where(where, x, 0.0), axis=0) / count
    return jnp.sum(jnp.where(where, centred**2, 0.0), axis=0) / count


def image_branches(model: Any) -> list[Branch]:
    """The parts of the model that read images."""
    if not isinstance(model, Composed):
        return []
    parts = (getattr(model, name, None) for name in ("actor", "critic", "trunk"))
    return [part for part in parts if isinstance(part, Branch) and part.pictures]


def of_encoders(model: Any, batch: Any) -> Float[Array, ""]:
    """The share of features that do not vary, for the image encoder with the largest share; nan without images."""
    branches = image_branches(model)
    if not branches:
        return jnp.float32(jnp.nan)
    flat = jax.tree.map(lambda x: x.reshape(batch.valid.size, *x.shape[batch.valid.ndim :]), batch.features)
    images, where = model.legible(flat)[1], batch.valid.reshape(-1, 1)
    found = [
        still(network(image), where) for part in branches for network, image in zip(part.pictures, images, strict=True)
    ]
    return jnp.max(jnp.stack(found))


def keyed_features(model: Any) -> list[tuple[str, int]]:
    """(key, number of features) of each part of an observation that enters the first layer unchanged; empty for a
    user's model."""
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, ObservationEncoder):
        return []
    convolved = dict(model.networks) if isinstance(model, Composed) else {}
    return [(key, part.num_features) for key, part in parts_by_key(encoder) if key not in convolved]


def parts_by_key(encoder: ObservationEncoder) -> Iterator[tuple[str, ObservationEncoder]]:
    """(key, encoder) of each part of an observation."""
    return ((key, part) for key, part, _ in encoder.leaves(encoder.shapes))


def of_keys(model: Any, batch: Any) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Of the variance of all features that enter the first layer, the largest share due to a single key, and the index
    of that key; nan unless at least two keys vary."""
    vector: Any = batch.features[0] if isinstance(model, Composed) else batch.features
    spread = variances(vector.reshape(batch.valid.size, -1), batch.valid.reshape(-1, 1))
    sizes = [count for _, count in keyed_features(model)]
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    each = jnp.stack([jnp.sum(spread[end - size : end]) for size, end in zip(sizes, ends, strict=True)])
    is_known = jnp.sum(each > 1e-12) > 1
    nan = jnp.float32(jnp.nan)
    return (
        jnp.where(is_known, jnp.max(each) / jnp.sum(each), nan),
        jnp.where(is_known, jnp.argmax(each).astype(jnp.float32), nan),
    )
