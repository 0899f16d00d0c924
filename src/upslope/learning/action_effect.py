"""Whether actions matter: whether what comes next goes with what chance chose of them."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upslope.core.types import Rollout


def action_effect(batch: Any, rollout: Rollout) -> Float[Array, ""]:
    """Mean z² of what chance chose with what came next: the reward, the end, the change of each observed number.

    The score ∂ log π(a|s)/∂(logits, mean) has mean 0 given s. If nothing depends on the action, it also has given what
    follows, whatever the policy is; z = Σ score·y / √Σ (score·y)² then has a mean square of 1, and more where the
    policy is nearly deterministic, whose scores are skew.
    """
    scores = jax.grad(lambda policy: jnp.sum(policy.log_prob(batch.action)))(batch.old_policy)
    # A σ that all states share has one score for the batch, not one a sample.
    score = jnp.concatenate([x for x in jax.tree.leaves(scores) if x.ndim == 2], axis=1)
    valid = batch.valid[:, None].astype(jnp.float32)
    before, after = (
        x.reshape(len(valid), -1).astype(jnp.float32) for x in (rollout.observation, rollout.next_observation)
    )
    facts = [x.reshape(-1, 1).astype(jnp.float32) for x in (rollout.reward, rollout.terminated)]
    following = jnp.concatenate([*facts, after - before], axis=1)
    centre = valid.T @ following / jnp.maximum(jnp.sum(valid), 1)
    score, following = jax.lax.optimization_barrier((score * valid, following - centre))
    together, square = score.T @ following, jnp.square(score).T @ jnp.square(following)
    varies = square > 1e-12
    return jnp.sum(jnp.where(varies, together**2 / jnp.where(varies, square, 1), 0)) / jnp.sum(varies)
