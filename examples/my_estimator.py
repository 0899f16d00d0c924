"""An estimator of your own: leave-one-out, a baseline that needs no critic.

An action's baseline is the mean return of the *other* episodes in the batch, counted from the same step on. It does not
depend on the action, so the gradient stays unbiased, and rewards that every episode receives cancel out. Based on Kool,
van Hoof & Welling 2019, "Buy 4 REINFORCE samples, get a baseline for free!".

    python my_estimator.py
    upslope train jax:CartPole-v1 --algorithm reinforce --estimator my_estimator:LeaveOneOut
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

import upslope
from upslope.core.estimators import reward_to_go


@dataclass(frozen=True)
class LeaveOneOut(upslope.Estimator):
    """Ψ_t = R_t − mean of R_t over the other episodes still in progress at step t (0 if there are none)."""

    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = True

    def __call__(self, rollout: upslope.Rollout, values: upslope.Values, gamma: float) -> upslope.Credit:
        returns = reward_to_go(rollout, gamma)
        others = jnp.sum(returns, axis=1, keepdims=True) - returns
        count = jnp.sum(rollout.valid, axis=1, keepdims=True) - rollout.valid
        weight = jnp.where(rollout.valid, returns - others / jnp.maximum(count, 1), 0.0)
        return upslope.Credit(weight=weight, target=returns)


if __name__ == "__main__":
    upslope.train("jax:CartPole-v1", "reinforce", estimator=LeaveOneOut(), steps=200_000, seeds=5)
