"""Discounted returns computed forwards in time. Their standard deviation is the unit of the learner's rewards."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upslope.core.estimators import UNROLL, ends
from upslope.core.types import Rollout


def discounted_returns(
    gamma: float, carry: Float[Array, "N"], rollout: Rollout
) -> tuple[Float[Array, "T N"], Float[Array, "N"]]:
    """G_t = r_t + γ G_{t−1} within each episode, forwards in time. Also returns the final G, from which to continue."""
    end = ends(rollout)
    began = jnp.concatenate([jnp.zeros_like(end[:1]), end[:-1]])

    def forwards(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, began = now  # the product is inside `where` for the reason given in `td_error`
        total = reward + jnp.where(began, 0.0, gamma * before)
        return total, total

    last, discounted = jax.lax.scan(forwards, carry, (rollout.reward, began), unroll=UNROLL)
    return discounted, jnp.where(end[-1], 0.0, last)
