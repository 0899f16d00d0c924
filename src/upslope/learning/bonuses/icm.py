"""`icm`: reward a step for the prediction error of its successor, in features that reveal which action was taken."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.core.arrays import STATIC, pytree
from upslope.core.types import Rollout, successor_of
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Bonus, Setting, check_fitting, flat_rows, valid_rows
from upslope.learning.bonuses.distillation import OPTIMISER, floats_of, normalised, start_statistics, updated
from upslope.learning.descent import Plan
from upslope.learning.fitting import Fitted, begin_fitting, fit
from upslope.models.actions import action_features, num_action_features
from upslope.models.build import networks_for
from upslope.models.head import ActionHead
from upslope.models.heads import without_features
from upslope.models.networks import Perceptron, generator_of, initialise_perceptron
from upslope.models.readers import Reader


@pytree
class Curious:
    """The networks of `ICM`."""

    encode: Reader
    """φ, which maps an observation to features."""
    predict: Perceptron
    """φ̂, which predicts the features of the successor from φ(s) and the action."""
    invert: Perceptron
    """The network that computes the parameters of a distribution of the action from φ(s) and φ(s')."""
    log_std: Float[Array, "L"]
    head: ActionHead = field(metadata=STATIC)


class Steps(NamedTuple):
    """B steps to which the networks are fitted."""

    now: Any
    after: Any
    action: Any
    told: Float[Array, "B A"]
    """The action as features."""
    weight: Float[Array, "B"]
    valid: Bool[Array, "B"]


class Curiosity(NamedTuple):
    """The state of `ICM`."""

    fitted: Fitted
    statistics: Any


@dataclass(frozen=True)
class ICM(Bonus):
    """r_t = ½ ‖φ̂(φ(s_t), a_t) − φ(s_{t+1})‖², where φ is trained to predict a_t from φ(s_t) and φ(s_{t+1}).

        loss = (1 − β) (−log g(a_t | φ(s_t), φ(s_{t+1}))) + β ½ ‖φ̂ − φ(s_{t+1})‖²

    `features` is the length of φ, and `width` that of the hidden layers. With `random_features`, φ is not trained
    (Burda et al. 2019, Large-Scale Study of Curiosity-Driven Learning, https://arxiv.org/abs/1808.04355, section 2.2).
    The policy's gradient does not flow into these networks. Source: Pathak et al. (2017), Curiosity-driven Exploration
    by Self-supervised Prediction, https://arxiv.org/abs/1705.05363, eq. 2 to 7.
    """

    features: int = 32
    width: int = 128
    beta: float = 0.2
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-3
    random_features: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fitting(self)
        if not 0 <= self.beta <= 1:
            raise UpslopeError(f"β of ICM must be in [0, 1], not {self.beta}.")

    def start(self, setting: Setting, key: PRNGKeyArray) -> Curiosity:
        head, draw = without_features(setting.model.head), generator_of(jax.random.fold_in(key, 1))
        encode = networks_for(setting.model, self.features, key, hidden_sizes=(self.width,), activation="relu")
        sizes = self.features + num_action_features(head), self.width, self.features
        predict = initialise_perceptron(draw, sizes, 1.0, "relu")
        invert = initialise_perceptron(draw, (2 * self.features, self.width, head.num_outputs), 0.01, "relu")
        networks = Curious(encode, predict, invert, jnp.zeros(head.num_scales), head)
        return Curiosity(begin_fitting(networks, OPTIMISER), start_statistics(encode, setting))

    def __call__(
        self, rollout: Rollout, begins: Bool[Array, "T N"], state: Curiosity, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T N"], Curiosity]:
        networks: Curious = state.fitted.networks
        valid, seen = rollout.valid.reshape(-1), (rollout.observation, successor_of(rollout))
        now, after = (floats_of(networks.encode, flat_rows(x), valid) for x in seen)
        statistics = updated(state.statistics, after, valid)
        now, after = normalised(statistics, now), normalised(statistics, after)
        action = valid_rows(flat_rows(rollout.action), valid)
        told = action_features(networks.head, action)
        steps = Steps(now, after, action, told, valid.astype(jnp.float32), valid)
        reward = prediction_error(networks, steps)[0].reshape(rollout.valid.shape)

        def loss(networks: Any, steps: Steps) -> Float[Array, "B"]:
            if self.random_features:
                networks = replace(networks, encode=jax.lax.stop_gradient(networks.encode))
            error, features = prediction_error(networks, steps)
            guess = networks.head.distribution(networks.invert(features), networks.log_std)
            return self.beta * error - (1 - self.beta) * guess.log_prob(steps.action)

        plan = Plan(OPTIMISER, self.epochs, min(self.minibatches, valid.size), in_halves=False)
        fitted, _ = fit(state.fitted, plan, loss, steps, key, self.learning_rate)
        return reward, Curiosity(fitted, statistics)


def prediction_error(networks: Curious, steps: Steps) -> tuple[Float[Array, "B"], Float[Array, "B F"]]:
    """½ ‖φ̂ − φ(s')‖², and (φ(s), φ(s')) concatenated."""
    now, after = networks.encode.of_legible(steps.now), networks.encode.of_legible(steps.after)
    predicted = networks.predict(jnp.concatenate([now, steps.told], axis=-1))
    return 0.5 * jnp.sum((predicted - after) ** 2, axis=-1), jnp.concatenate([now, after], axis=-1)
