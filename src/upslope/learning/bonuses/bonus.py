"""The interface of bonuses, `(rollout, …, state) → intrinsic reward, state`. To write your own, subclass `Bonus`."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.core.fields import require_field_types
from upslope.core.types import Metrics, Rollout
from upslope.errors import UpslopeError
from upslope.models.build import ModelSpec


class Setting(NamedTuple):
    """The information that a bonus receives before the first step."""

    observation_space: gymnasium.Space
    model: ModelSpec
    """The agent's encoder and action head, and the settings of its networks."""
    num_envs: int
    """N, the number of columns of a rollout."""


class Bonus(ABC):
    """Base class of bonuses. Subclasses are frozen dataclasses whose fields are the hyperparameters."""

    has_unit: ClassVar[bool] = False
    """Whether rewards have a natural unit, with values of at most 1, and are therefore not divided by the scale of
    their returns."""

    def __post_init__(self) -> None:
        require_field_types(self)

    @abstractmethod
    def start(self, setting: Setting, key: PRNGKeyArray) -> Any:
        """The state before the first step: a pytree of arrays."""

    @abstractmethod
    def __call__(
        self, rollout: Rollout, begins: Bool[Array, "T N"], state: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, "T N"], Any]:
        """The intrinsic reward of each step, which is not negative, and the state after the rollout.

        `begins` marks the steps at which an episode begins. Rewards of steps that are not `rollout.valid` are ignored.
        The observation after each step is `successor_of(rollout)`, from `upslope.core.types`.
        """

    def measured(self, state: Any) -> Metrics:
        """Metrics that describe the state; their names begin with `bonus/`."""
        return {}


def flat_rows(tree: Any) -> Any:
    """[T, N, …] → [T·N, …], for each array."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def valid_rows(tree: Any, valid: Bool[Array, "B"]) -> Any:
    """The rows [B, …] of each array, replaced by 0 where they are not valid.

    Padding may contain any value, and a gradient through nan is nan even where the loss is masked."""

    def one(x: Array) -> Array:
        return jnp.where(valid.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros((), x.dtype))

    return jax.tree.map(one, tree)


def check_fitting(bonus: Any) -> None:
    """Raise an error if sizes or rates of a bonus's networks are invalid."""
    for name in ("features", "width", "epochs", "minibatches"):
        value = getattr(bonus, name)
        if type(value) is not int or value < 1:
            raise UpslopeError(f"{name} of {type(bonus).__name__} must be a positive integer, not {value!r}.")
    for name, most in {"learning_rate": 1e3, "share": 1.0}.items():
        value = getattr(bonus, name, most)
        if not isinstance(value, int | float) or not 0 < value <= most:
            raise UpslopeError(f"{name} of {type(bonus).__name__} must be above 0 and at most {most:g}, not {value!r}.")
