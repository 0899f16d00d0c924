"""The interface of action heads.

A head converts a network's outputs to a distribution over actions, and actions to the form that the environment takes.
It also defines the shape of an action, how to check it, and how to describe it. A head is a small hashable record that
is stored in config.json. An action with several parts remains one vector from the policy to the file; `to_environment`
and `to_compiled` give it the structure of its space.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import gymnasium
import jax
import numpy as np
from jaxtyping import Bool, Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.distributions import (
    Distribution,
)
from upslope.models.encoders import Refuse

if TYPE_CHECKING:
    from upslope.models.box_heads import BoxHead


class ActionHead(ABC):
    """Describes the actions of one space."""

    is_continuous = False
    """Whether actions are real vectors, which determines a run's defaults."""
    num_scales = 0
    """Number of state-independent log σ parameters."""
    sample_dtype: Any = np.int32
    """The dtype of an action as the policy samples it."""
    num_features = 0
    """H, the number of activations of the policy's last hidden layer if the distribution reads them; otherwise 0."""
    noise_every = 1
    """The number of steps for which the noise of a sample is held; 0 for a whole rollout or episode."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of network outputs."""

    @property
    @abstractmethod
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one action as the policy samples it."""

    @property
    @abstractmethod
    def kept_shape(self) -> tuple[int, ...]:
        """The shape of one action in the form that `kept` returns."""

    @property
    def boxes(self) -> "dict[str, BoxHead]":
        """The heads of the real-valued parts, keyed by part; the key "" means the whole action."""
        return {}

    @property
    def is_squashed(self) -> bool:
        """Whether real-valued parts are sampled before tanh."""
        return any(box.is_squashed for box in self.boxes.values())

    def squashed(self, action: Any) -> Any:
        """Sampled actions [..., K] with tanh applied to their real-valued parts, in the environment's units."""
        return action

    def unsquashed(self, action: Any) -> Any:
        """The inverse of `squashed`; not finite where an action is not strictly within its bounds."""
        return action

    @property
    def max_entropy(self) -> float | None:
        """The entropy of the uniform policy in nats; None for continuous actions."""
        return None

    @property
    def num_choices(self) -> int:
        """M, the number of choices in a mask; 0 if actions cannot be masked."""
        return 0

    def flat_mask(self, mask: Any) -> Bool[Array, "M"]:
        """Flatten a mask to one flag per choice. The mask may have the form of Gymnasium's `space.sample(mask=…)` or of
        sb3-contrib, which puts all choices in one array.

        Raises:
            ValueError: the mask has a different form, or contains values other than 0 and 1.
        """
        if not self.num_choices:
            raise ValueError("actions of this space cannot be forbidden")
        flags = as_flags(mask)
        if flags.shape != (self.num_choices,):
            raise ValueError(f"it has the shape {flags.shape}, but {self.mask_form} is needed")
        return flags

    @property
    def mask_form(self) -> str:
        """The accepted forms of a mask, for messages."""
        return f"({self.num_choices},)"

    def allows_some(self, mask: Bool[Array, "... M"]) -> Any:
        """Whether each mask allows at least one action."""
        return mask.any(axis=-1)

    @abstractmethod
    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        """Draw a random allowed action, in the form in which the policy samples it."""

    def permits(self, mask: Any, action: Any) -> np.ndarray:
        """Whether each mask [..., M] allows the corresponding sampled action."""
        outputs: Any = np.zeros((*mask.shape[:-1], self.num_outputs))
        features = np.zeros((*mask.shape[:-1], self.num_features))
        scales: Any = np.zeros(self.num_scales)
        with np.errstate(invalid="ignore"):  # an all-false mask permits nothing
            policy = self.distribution(outputs, scales, features).masked(mask)
            return np.asarray(policy.log_prob(action)) > -np.inf

    @abstractmethod
    def distribution(
        self, outputs: Float[Array, "... K"], log_std: Float[Array, "... L"], features: Any = None
    ) -> Distribution:
        """π(·|s) from a network's outputs and, if `num_features` is not 0, its last hidden layer [..., H]."""

    def held_since(self, t: Any) -> Any:
        """The step at which the noise of step t was drawn; steps count from the start of a rollout or episode."""
        return t - t % self.noise_every if self.noise_every else t * 0

    @abstractmethod
    def to_environment(self, action: np.ndarray) -> Any:
        """Convert a batch of sampled actions for a Gymnasium environment."""

    def kept(self, action: np.ndarray, taken: Any) -> np.ndarray:
        """Return an array for a checkpoint, which `replayed` converts back to the environment's actions. `taken` holds
        the actions that `to_environment` returned for the sampled actions."""
        return taken.copy()

    def replayed(self, kept: np.ndarray) -> Any:
        """The environment's actions, restored from an array that `kept` returned."""
        return kept

    def in_space(self, space: gymnasium.Space) -> "ActionHead":
        """This head with the dtype of `space`, which otherwise equals its own. Older runs did not record the dtype."""
        return self

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
        """Convert a batch of sampled actions for a compiled environment, whose choices start at 0."""
        return action

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        """The fraction of components that are clipped before reaching the environment; None if there are no bounds."""
        return None

    @abstractmethod
    def space(self) -> gymnasium.Space:
        """The action space that a user's model receives."""

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        """Reject recorded actions that are outside the space."""
        return


def as_array(x: Any) -> Any:
    """Return JAX arrays, including traced ones, unchanged; convert anything else to NumPy."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def parts_of(mask: Any, depth: int) -> list[Any]:
    """Flatten nested tuples and lists down to a given depth."""
    if depth == 0 or not isinstance(mask, tuple | list):
        return [mask]
    return [part for each in mask for part in parts_of(each, depth - 1)]


def as_flags(mask: Any) -> Any:
    """Convert zeros and ones to booleans.

    Raises:
        ValueError: the mask contains other values; traced arrays are not checked.
    """
    x = as_array(mask)
    if np.ma.is_masked(mask):
        raise ValueError("some of its values are themselves masked")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"it consists of {x.dtype}, not numbers or booleans")
    if x.dtype.kind != "b" and isinstance(x, np.ndarray) and not ((x == 0) | (x == 1)).all():
        raise ValueError("it contains numbers other than 0 and 1")
    return x.astype(bool)


def random_choice(generator: np.random.Generator, n: int, mask: Any) -> np.ndarray:
    """Draw one of n choices, uniformly from those that the mask allows."""
    chosen = generator.integers(n) if mask is None else generator.choice(np.flatnonzero(mask))
    return np.asarray(chosen, np.int32)
