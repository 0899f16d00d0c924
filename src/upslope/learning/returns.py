"""Discounted returns forwards in time, whose spread is the unit in which a learner sees rewards."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upslope.core.estimators import UNROLL, ends
from upslope.core.types import Rollout


def discounted_returns(
    gamma: float, carry: Float[Array, "N"], rollout: Rollout
) -> tuple[Float[Array, "T N"], Float[Array, "N"]]:
    """G_t = r_t + γ G_{t−1} within each episode, forwards in time, and the final G to continue from."""

    def forwards(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, end = now
        total = reward + gamma * before
        return jnp.where(end, 0.0, total), total

    carry, discounted = jax.lax.scan(forwards, carry, (rollout.reward, ends(rollout)), unroll=UNROLL)
    return discounted, carry
