"""Whether actions matter: whether what comes next goes with what chance chose of them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upslope.core.estimators import ends
from upslope.core.types import Rollout


def action_effect(batch: Any, rollout: Rollout) -> Float[Array, ""]:
    """Mean z² of what chance chose with what came next: the reward, the end, the change of each observed number.

    The score ∂ log π(a|s)/∂(logits, mean) has mean 0 given s. If nothing depends on the action, it also has given what
    follows, whatever the policy is; z = Σ score·y / √Σ (score·y)² then has a mean square of 1, and more where the
    policy is nearly deterministic, whose scores are skew.
    """
    score, valid = scores_of(batch)
    before, after = (numbers_of(x, 2) for x in (rollout.observation, rollout.next_observation))
    facts = [x.reshape(-1, 1).astype(jnp.float32) for x in (rollout.reward, rollout.terminated)]
    return mean_square_z(score, jnp.concatenate([*facts, after - before], axis=1), valid)


def late_effect(batch: Any, rollout: Rollout) -> Float[Array, ""]:
    """The same for what a memory or patience would show, the larger of two mean z², 1.64 by chance.

    One is of the weight Ψ, since an action may be paid for much later. The other is of reward and end, each times the
    sum of what the episode had shown before: an action may have to match what is no longer seen, and its reward then
    goes with nothing that the present observation tells. A sum, since a cue that was shown once stays in it.
    """
    score, valid = scores_of(batch)
    begins = jnp.concatenate([jnp.ones_like(rollout.valid[:1]), ends(rollout)[:-1]])
    seen = numbers_of(rollout.observation, 2).reshape(*rollout.reward.shape, -1)

    def further(total: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        observation, begins = now
        total = jnp.where(begins[:, None], 0.0, total)
        return total + observation, total

    remembered = jax.lax.scan(further, jnp.zeros_like(seen[0]), (seen, begins))[1].reshape(len(valid), -1)
    reward, over = (
        jnp.ravel(x).astype(jnp.float32)[:, None] for x in (rollout.reward, rollout.terminated & rollout.valid)
    )
    # About their means, or a cost that every step has would hide the reward that comes once.
    reward, remembered = (about_mean(x, valid) for x in (reward, remembered))
    products = [x * remembered for x in (reward, over)]
    paid = mean_square_z(score, batch.weight.reshape(-1, 1), valid)
    return jnp.fmax(paid, mean_square_z(score, jnp.concatenate(products, axis=1), valid))


def numbers_of(observation: Any, batch_axes: int) -> Float[Array, "B D"]:
    """Every number of an observation, whatever its arrays, one row for each place of the batch axes."""
    flat = [x.reshape(math.prod(x.shape[:batch_axes]), -1).astype(jnp.float32) for x in jax.tree.leaves(observation)]
    return jnp.concatenate(flat, axis=1)


def scores_of(batch: Any) -> tuple[Float[Array, "B K"], Float[Array, "B 1"]]:
    """∂ log π(a|s)/∂(logits, mean) of each sample, 0 where it is padding, and 1 where it is not."""
    scores = jax.grad(lambda policy: jnp.sum(policy.log_prob(batch.action)))(batch.old_policy)
    # A σ that all states share has one score for the batch, not one a sample.
    score = jnp.concatenate([x for x in jax.tree.leaves(scores) if x.ndim == 2], axis=1)
    valid = batch.valid[:, None].astype(jnp.float32)
    return score * valid, valid


def mean_square_z(
    score: Float[Array, "B K"], following: Float[Array, "B Y"], valid: Float[Array, "B 1"]
) -> Float[Array, ""]:
    """Mean z² over all pairs whose product varies; nan where none does."""
    score, following = jax.lax.optimization_barrier((score, about_mean(following, valid)))
    products = score.T @ following, jnp.square(score).T @ jnp.square(following)
    together, square = jax.lax.optimization_barrier(products)
    varies = square > 1e-12
    total = jnp.sum(jnp.where(varies, together**2 / jnp.where(varies, square, 1), 0))
    return jax.lax.optimization_barrier(total) / jnp.sum(varies)


def about_mean(x: Float[Array, "B D"], valid: Float[Array, "B 1"]) -> Float[Array, "B D"]:
    """x less its mean over the valid rows.

    Fused with its neighbours, a sum would be rounded as the program around it has it, which differs with the number of
    seeds; the barriers keep it apart, here and above.
    """
    x, valid = jax.lax.optimization_barrier((x, valid))
    return jax.lax.optimization_barrier(x - valid.T @ x / jnp.maximum(jnp.sum(valid), 1))
