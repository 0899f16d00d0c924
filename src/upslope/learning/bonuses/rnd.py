"""`rnd`: reward a step for the error of a network that predicts a random network's output at the step's successor."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.core.types import Rollout, successor_of
from upslope.learning.bonuses.bonus import Bonus, Setting, check_fitting, flat_rows
from upslope.learning.bonuses.distillation import (
    begin_distillation,
    distil,
    floats_of,
    squared_errors,
    updated,
)


@dataclass(frozen=True)
class RND(Bonus):
    """r_t = 1/K Σ_k (f̂_k(s_{t+1}) − f_k(s_{t+1}))², with f a fixed random network and f̂ its predictor.

    `features` is K; `width` is the width of the hidden layers. Observations are normalised by their running statistics
    and clipped to ±5. The predictor is then trained on a random `share` of the batch. Source: Burda et al. (2019),
    Exploration by Random Network Distillation, https://arxiv.org/abs/1810.12894.
    """

    features: int = 64
    width: int = 128
    share: float = 0.25
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fitting(self)

    def start(self, setting: Setting, key: PRNGKeyArray) -> Any:
        return begin_distillation(setting, self.features, self.width, key)

    def __call__(
        self, rollout: Rollout, begins: Bool[Array, "T N"], state: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T N"], Any]:
        valid = rollout.valid.reshape(-1)
        after = floats_of(state.target, flat_rows(successor_of(rollout)), valid)
        state = state._replace(statistics=updated(state.statistics, after, valid))
        reward = jnp.mean(squared_errors(state, after), axis=-1).reshape(rollout.valid.shape)
        plan = {"share": self.share, "epochs": self.epochs, "minibatches": self.minibatches}
        return reward, distil(state, after, valid, key, **plan, learning_rate=self.learning_rate)
