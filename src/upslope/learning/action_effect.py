"""Test whether actions have an effect, i.e. whether later rewards and observations correlate with the policy's random
choices."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upslope.core.estimators import ends
from upslope.core.types import Rollout

LARGEST = 4096
"""The largest number of values examined in each array of an observation."""


def action_effect(batch: Any, rollout: Rollout) -> Float[Array, ""]:
    """Mean z² of the association between an action's score and the step's outcome.

    The outcome y consists of the reward, the end of the episode, and the change in each observed number.

    The score ∂ log π(a|s)/∂(logits, mean) has mean 0 given s. If nothing depends on the action, it also has mean 0
    given y, for any policy. In that case, z = Σ score·y / √Σ (score·y)² has a mean square of 1, or more if the policy
    is nearly deterministic, because its scores are then skewed.
    """
    score, valid = scores_of(batch)
    before, after = (numbers_of(x, 2) for x in (rollout.observation, rollout.next_observation))
    facts = [x.reshape(-1, 1).astype(jnp.float32) for x in (rollout.reward, rollout.terminated)]
    return mean_square_z(score, jnp.concatenate([*facts, after - before], axis=1), valid)


def late_effect(batch: Any, rollout: Rollout) -> Float[Array, ""]:
    """Like `action_effect`, for delayed outcomes and hidden cues. Its expectation by chance alone is 1.64.

    Returns the larger of two mean z² values. The first uses the weight Ψ as the outcome, because an action's reward may
    come much later. The second uses the reward and the end of the episode, each multiplied by the sum of the episode's
    earlier observations. If an action must match a cue that is no longer visible, its reward is uncorrelated with the
    current observation, but the sum preserves even a cue that was shown only once.
    """
    score, valid = scores_of(batch)
    is_first = jnp.concatenate([jnp.ones_like(rollout.valid[:1]), ends(rollout)[:-1]])
    seen = numbers_of(rollout.observation, 2).reshape(*rollout.reward.shape, -1)

    def accumulate(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        observation, is_first = now
        total = jnp.where(is_first[:, None], 0.0, total)
        return total + observation, total

    remembered = jax.lax.scan(accumulate, jnp.zeros_like(seen[0]), (seen, is_first))[1].reshape(len(valid), -1)
    reward, over = (
        jnp.ravel(x).astype(jnp.float32)[:, None] for x in (rollout.reward, rollout.terminated & rollout.valid)
    )
    # Centre the outcomes, because a constant cost per step would otherwise hide a rare reward.
    reward, remembered = (centred(x, valid) for x in (reward, remembered))
    products = [x * remembered for x in (reward, over)]
    paid = mean_square_z(score, batch.weight.reshape(-1, 1), valid)
    return jnp.fmax(paid, mean_square_z(score, jnp.concatenate(products, axis=1), valid))


def numbers_of(observation: Any, batch_axes: int) -> Float[Array, "B D"]:
    """Collect the numbers in an observation's arrays, with the batch axes flattened to rows.

    If an array has more than `LARGEST` numbers, as an image may, only every k-th number is used."""
    flat = [x.reshape(math.prod(x.shape[:batch_axes]), -1) for x in jax.tree.leaves(observation)]
    some = [x[:, :: -(-x.shape[1] // LARGEST)] if x.shape[1] else x for x in flat]
    return jnp.concatenate([x.astype(jnp.float32) for x in some], axis=1)


def scores_of(batch: Any) -> tuple[Float[Array, "B K"], Float[Array, "B 1"]]:
    """Return ∂ log π(a|s)/∂(logits, mean) for each sample, and a mask that is 1 for valid samples. Both are 0 in
    padding."""
    scores = jax.grad(lambda policy: jnp.sum(policy.log_prob(batch.action)))(batch.old_policy)
    # A state-independent σ has one score for the whole batch, not one per sample.
    score = jnp.concatenate([x for x in jax.tree.leaves(scores) if x.ndim == 2], axis=1)
    valid = batch.valid[:, None].astype(jnp.float32)
    return score * valid, valid


def mean_square_z(
    score: Float[Array, "B K"], following: Float[Array, "B Y"], valid: Float[Array, "B 1"]
) -> Float[Array, ""]:
    """Mean z² over all pairs whose product varies; nan if there is no such pair."""
    score, following = jax.lax.optimization_barrier((score, centred(following, valid)))
    products = score.T @ following, jnp.square(score).T @ jnp.square(following)
    together, square = jax.lax.optimization_barrier(products)
    varies = square > 1e-12
    total = jnp.sum(jnp.where(varies, together**2 / jnp.where(varies, square, 1), 0))
    return jax.lax.optimization_barrier(total) / jnp.sum(varies)


def centred(x: Float[Array, "B D"], valid: Float[Array, "B 1"]) -> Float[Array, "B D"]:
    """x minus its mean over the valid rows.

    The optimisation barriers, here and above, prevent fusion with neighbouring operations. With fusion, the rounding of
    a sum would depend on the surrounding program, and hence on the number of seeds.
    """
    x, valid = jax.lax.optimization_barrier((x, valid))
    return jax.lax.optimization_barrier(x - valid.T @ x / jnp.maximum(jnp.sum(valid), 1))
