"""From Gymnasium's spaces to what a network reads and what its outputs mean.

A `Coding` turns observations into feature vectors; a `Head` turns network outputs into a distribution over actions,
and its actions into what the environment takes. Both are small hashable records, kept in config.json, so that a
saved agent can be rebuilt without its environment.
"""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import namespace
from upslope.core.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical
from upslope.core.reading import brief
from upslope.descriptions import CODINGS, HEADS, space_fields
from upslope.errors import UpslopeError

SUPPORTED = "Supported: observations Box and Discrete; actions Discrete, Box, MultiDiscrete, MultiBinary."


@dataclass(frozen=True)
class BoxCoding:
    """A Box observation of any shape, flattened."""

    shape: tuple[int, ...]

    @property
    def num_features(self) -> int:
        return math.prod(self.shape)

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        """[..., *shape] → [..., D]."""
        batch = observation.shape[: observation.ndim - len(self.shape)]
        return observation.astype(np.float32).reshape(*batch, self.num_features)


@dataclass(frozen=True)
class DiscreteCoding:
    """A Discrete observation, one-hot."""

    n: int
    start: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def num_features(self) -> int:
        return self.n

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        """[...] → [..., n]."""
        every = namespace(observation).arange(self.n)
        return (observation[..., None] - self.start == every).astype(np.float32)


Coding = BoxCoding | DiscreteCoding


@dataclass(frozen=True)
class DiscreteHead:
    """One of n actions."""

    n: int
    start: int = 0

    @property
    def num_outputs(self) -> int:
        return self.n

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"]) -> Distribution:
        return Categorical(outputs)

    def to_environment(self, action: np.ndarray) -> Any:
        """Count from the space's own start, in Gymnasium's dtype."""
        return np.asarray(action, np.int64) + self.start


@dataclass(frozen=True)
class BoxHead:
    """A real vector, in the environment's units.

    The network works in units of the half range: mean = centre + half · output, σ = half · exp(log_std); where a
    bound is infinite, centre = 0 and half = 1. The sampled action is stored as it is and clipped for the world.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def num_outputs(self) -> int:
        return len(self.low)

    @cached_property
    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """(centre, half range) of each component; (0, 1) where it has an infinite bound."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        # Bounds that are as good as infinite, or equal, give no scale.
        is_finite = (np.abs(low) < 1e30) & (np.abs(high) < 1e30) & (high > low)
        low, high = np.where(is_finite, low, -1.0), np.where(is_finite, high, 1.0)
        return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) in 32 bits."""
        return np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... K"]) -> Distribution:
        centre, half = self.scaling
        xp = namespace(outputs)
        log_std = xp.broadcast_to(log_std + np.log(half), outputs.shape)
        return DiagonalGaussian(xp.asarray(centre) + half * outputs, log_std)

    def to_environment(self, action: np.ndarray) -> Any:
        """Clip to the bounds and give the space's own shape."""
        low, high = self.bounds
        clipped = np.minimum(np.maximum(action, low), high)  # which takes half as long as np.clip
        return clipped.reshape(*action.shape[:-1], *self.shape)


@dataclass(frozen=True)
class MultiDiscreteHead:
    """Several independent choices at once."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    start: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        return sum(self.sizes)

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"]) -> Distribution:
        heads = namespace(outputs).split(outputs, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)
        return MultiCategorical(tuple(Categorical(head) for head in heads))

    def to_environment(self, action: np.ndarray) -> Any:
        action = np.asarray(action, np.int64) + np.asarray(self.start)
        return action.reshape(*action.shape[:-1], *self.shape)


@dataclass(frozen=True)
class MultiBinaryHead:
    """Several independent switches."""

    shape: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        return math.prod(self.shape)

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"]) -> Distribution:
        return Bernoulli(outputs)

    def to_environment(self, action: np.ndarray) -> Any:
        return np.asarray(action, np.int8).reshape(*action.shape[:-1], *self.shape)


Head = DiscreteHead | BoxHead | MultiDiscreteHead | MultiBinaryHead


def coding_of(space: gymnasium.Space, name: str) -> Coding:
    """The coding for an observation space, or a refusal by name."""
    if isinstance(space, spaces.Discrete):
        return DiscreteCoding(int(space.n), int(space.start))
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) >= 2:
            raise UpslopeError(
                f"{name} observes images, Box{space.shape} of uint8, which need a convolutional network; upslope has "
                f"none yet. Wrap the environment so that it gives features, or flatten it to a float Box. {SUPPORTED}"
            )
        return BoxCoding(tuple(int(n) for n in space.shape))
    raise UpslopeError(unsupported(name, "observation", space))


def head_of(space: gymnasium.Space, name: str) -> Head:
    """The head for an action space, or a refusal by name."""
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(int(space.n), int(space.start))
    if isinstance(space, spaces.Box) and np.issubdtype(np.dtype(space.dtype or np.float32), np.floating):
        low, high = np.asarray(space.low, np.float64).ravel(), np.asarray(space.high, np.float64).ravel()
        return BoxHead(tuple(space.shape), tuple(low.tolist()), tuple(high.tolist()))
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start = np.asarray(space.nvec).ravel(), np.asarray(space.start).ravel()
        return MultiDiscreteHead(tuple(space.nvec.shape), tuple(sizes.tolist()), tuple(start.tolist()))
    if isinstance(space, spaces.MultiBinary):
        return MultiBinaryHead(tuple(int(n) for n in space.shape))
    raise UpslopeError(unsupported(name, "action", space))


def unsupported(name: str, role: str, space: gymnasium.Space) -> str:
    """Say which space cannot be used and what can be done."""
    remedy = (
        "Wrap it with gymnasium.wrappers.FlattenObservation"
        if role == "observation"
        else "Wrap it so that it takes one of the supported spaces"
    )
    return f"{name} has the {role} space {type(space).__name__}, which upslope cannot use yet. {remedy}. {SUPPORTED}"


KINDS = {k.__name__: k for k in (BoxCoding, DiscreteCoding, DiscreteHead, BoxHead, MultiDiscreteHead, MultiBinaryHead)}


def to_json(record: Coding | Head) -> dict[str, Any]:
    """A description in strict JSON, which knows no infinity: bounds are written as text."""
    fields = asdict(record)
    if isinstance(record, BoxHead):
        fields |= {"low": [repr(x) for x in record.low], "high": [repr(x) for x in record.high]}
    return {"kind": type(record).__name__, **fields}


def from_json(description: Any, kinds: dict[str, tuple[str, ...]] = CODINGS | HEADS) -> Any:
    """The inverse of `to_json`.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it describes no space of these kinds.
    """
    fields = space_fields(description, kinds)
    kind: Any = KINDS[description["kind"]]
    return kind(**fields)


def describe(coding: Coding, head: Head) -> dict[str, Any]:
    """How a run reads observations and means actions, for its config.json."""
    return {"observation": to_json(coding), "action": to_json(head)}


def described(spaces: dict[str, Any], where: str) -> tuple[Coding, Head]:
    """The inverse of `describe`; `where` is the file that says so."""
    try:
        return from_json(spaces["observation"], CODINGS), from_json(spaces["action"], HEADS)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UpslopeError(f"{where} does not describe the spaces: {brief(error)}.") from error
