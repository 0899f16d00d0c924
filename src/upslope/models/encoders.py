"""How an observation is read: from the arrays that an environment gives to what a network takes.

An `ObservationEncoder` is a small hashable record, kept in config.json, so that a saved agent is rebuilt without its
environment. To read another kind of space, add a record here and a line to `ENCODERS`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import is_shape, namespace
from upslope.errors import UpslopeError
from upslope.models.description import SUPPORTED, unsupported

Refuse = Any
"""reason → an `UpslopeError` to raise."""


class ObservationEncoder(ABC):
    """Reads the observations of one space."""

    @property
    @abstractmethod
    def shapes(self) -> Any:
        """The shape of each array of an observation: a pytree in the observation's structure."""

    @property
    @abstractmethod
    def normalised(self) -> Any:
        """The shape of each array whose numbers are real, so that it can be normalised; None for the others."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """D, the length of the feature vector."""

    @abstractmethod
    def encode(self, observation: Any) -> Float[Array, "... D"]:
        """[..., *shape] → [..., D]."""

    @abstractmethod
    def space(self) -> gymnasium.Space:
        """A space with such observations, for a user's model; bounds are not kept."""

    def check(self, name: str, arrays: Mapping[str, np.ndarray], refuse: Refuse) -> None:
        """Refuse recorded observations, the arrays of this name, that the space does not hold."""
        return

    def num_batch_axes(self, observation: Any) -> int | None:
        """0 for one observation of the space, 1 for a batch; None for anything else."""
        try:
            axes = jax.tree.map(batch_axes, self.shapes, observation, is_leaf=is_shape)
        except ValueError:  # another structure
            return None
        counts = set(jax.tree.leaves(axes))
        return counts.pop() if len(counts) == 1 and counts <= {0, 1} else None


def batch_axes(shape: tuple[int, ...], x: Any) -> int:
    """How many axes an array has before this shape; −1 where it does not end in it."""
    count = x.ndim - len(shape)
    return count if count >= 0 and x.shape[count:] == shape else -1


@dataclass(frozen=True)
class BoxEncoder(ObservationEncoder):
    """A Box observation of any shape, flattened."""

    shape: tuple[int, ...]

    @property
    def shapes(self) -> tuple[int, ...]:
        return self.shape

    @property
    def normalised(self) -> tuple[int, ...]:
        return self.shape

    @property
    def num_features(self) -> int:
        return math.prod(self.shape)

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        batch = observation.shape[: observation.ndim - len(self.shape)]
        return observation.astype(np.float32).reshape(*batch, self.num_features)

    def space(self) -> gymnasium.Space:
        return spaces.Box(-np.inf, np.inf, self.shape, np.float32)


@dataclass(frozen=True)
class DiscreteEncoder(ObservationEncoder):
    """A Discrete observation, one-hot."""

    n: int
    start: int = 0

    @property
    def shapes(self) -> tuple[int, ...]:
        return ()

    @property
    def normalised(self) -> None:
        return None

    @property
    def num_features(self) -> int:
        return self.n

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        every = namespace(observation).arange(self.n)
        return (observation[..., None] - self.start == every).astype(np.float32)

    def space(self) -> gymnasium.Space:
        return spaces.Discrete(self.n, start=self.start)

    def check(self, name: str, arrays: Mapping[str, np.ndarray], refuse: Refuse) -> None:
        check_choices(name, arrays[name] - self.start, self.n, refuse)


def check_choices(name: str, x: np.ndarray, sizes: Any, refuse: Refuse) -> None:
    """Refuse what is not a whole number from 0 to below `sizes`."""
    if x.dtype.kind not in "iub" or (x < 0).any() or (x >= sizes).any():
        raise refuse(f"`{name}` must hold integers from 0 to below {np.asarray(sizes).tolist()}")


def encoder_of(space: gymnasium.Space, name: str) -> ObservationEncoder:
    """The encoder for an observation space, or a refusal by name."""
    if isinstance(space, spaces.Discrete):
        if max(abs(int(space.start)), abs(int(space.start + space.n))) >= 2**31:
            raise UpslopeError(
                f"{name} observes {space}, whose numbers do not fit into 32 bits. Count from 0 in the environment."
            )
        return DiscreteEncoder(int(space.n), int(space.start))
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) >= 2:
            raise UpslopeError(
                f"{name} observes images, Box{space.shape} of uint8, which need a convolutional network; upslope has "
                f"none yet. Wrap the environment so that it gives features, or flatten it to a float Box. {SUPPORTED}"
            )
        return BoxEncoder(tuple(int(n) for n in space.shape))
    raise UpslopeError(unsupported(name, "observation", space))


ENCODERS = (BoxEncoder, DiscreteEncoder)
