"""Action heads: from a network's outputs to a distribution over actions, and from actions to the environment.

An `ActionHead` is a small hashable record, kept in config.json. It owns the shape of an action, its check, and its
description. To support another kind of space, add a record here and to `HEADS`.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import namespace
from upslope.core.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    split_last,
)
from upslope.core.space_descriptions import ACTION_DTYPES
from upslope.errors import UpslopeError
from upslope.models.description import unsupported
from upslope.models.encoders import Refuse, check_choices


class ActionHead(ABC):
    """Describes the actions of one space."""

    is_continuous = False
    """Whether actions are real vectors, which determines a run's defaults."""
    num_scales = 0
    """Number of state-independent log σ parameters."""

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
    def environment_shape(self) -> tuple[int, ...]:
        """The shape of one action as the environment expects it."""

    @property
    def max_entropy(self) -> float | None:
        """The entropy of the uniform policy in nats; None for continuous actions."""
        return None

    @property
    def num_choices(self) -> int:
        """M, the number of choices in a mask; 0 if actions cannot be masked."""
        return 0

    def flat_mask(self, mask: Any) -> Bool[Array, "M"]:
        """Flatten a mask to one flag per choice. It may have the form of Gymnasium's `space.sample(mask=…)` or of
        sb3-contrib, which puts all choices in one array.

        Raises:
            ValueError: the mask has another form, or holds values other than 0 and 1.
        """
        if not self.num_choices:
            raise ValueError("there is nothing to forbid among these actions")
        flags = as_flags(mask)
        if flags.shape != (self.num_choices,):
            raise ValueError(f"it has the shape {flags.shape}, and {self.mask_form} is needed")
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
        """A random allowed action, in the form in which the policy samples it."""

    def permits(self, mask: Any, action: Any) -> np.ndarray:
        """Whether each mask [..., M] allows the corresponding sampled action."""
        outputs: Any = np.zeros((*mask.shape[:-1], self.num_outputs))
        scales: Any = np.zeros(self.num_scales)
        with np.errstate(invalid="ignore"):  # an all-false mask permits nothing
            return np.asarray(self.distribution(outputs, scales).masked(mask).log_prob(action)) > -np.inf

    @abstractmethod
    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... L"]) -> Distribution:
        """π(·|s) from a network's outputs."""

    @abstractmethod
    def to_environment(self, action: np.ndarray) -> Any:
        """Convert a batch of sampled actions for a Gymnasium environment."""

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Shaped[Array, "N ..."]:
        """Convert a batch of sampled actions for a compiled environment, whose choices start at 0."""
        return action

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        """The fraction of components that are clipped before reaching the environment; None if there are no bounds."""
        return None

    @abstractmethod
    def space(self) -> gymnasium.Space:
        """The action space, for a user's model."""

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        """Refuse recorded actions that are outside the space."""
        return


@dataclass(frozen=True)
class DiscreteHead(ActionHead):
    """One of n actions."""

    n: int
    start: int = 0

    @property
    def num_outputs(self) -> int:
        return self.n

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def environment_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def max_entropy(self) -> float | None:
        return math.log(self.n)

    @property
    def num_choices(self) -> int:
        return self.n

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        return random_choice(generator, self.n, mask)

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"]) -> Distribution:
        return Categorical(outputs)

    def to_environment(self, action: np.ndarray) -> Any:
        """Add the space's start, in Gymnasium's dtype."""
        return np.asarray(action, np.int64) + self.start

    def space(self) -> gymnasium.Space:
        return spaces.Discrete(self.n, start=self.start)

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        check_choices("action", action, self.n, refuse)


@dataclass(frozen=True)
class BoxHead(ActionHead):
    """A real vector, in the environment's units.

    The network works in units of the half range: mean = centre + half · output, σ = half · exp(log_std); if a bound
    is infinite, centre = 0 and half = 1. The sampled action is stored unclipped, and clipped for the environment.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"
    """The environment's dtype; policies sample in 32 bits."""
    is_continuous = True

    @property
    def num_outputs(self) -> int:
        return len(self.low)

    @property
    def num_scales(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return len(self.low)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (len(self.low),)

    @property
    def environment_shape(self) -> tuple[int, ...]:
        return self.shape

    @cached_property
    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """(centre, half range) of each component; (0, 1) if it has an infinite bound."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        # Equal or practically infinite bounds give no scale.
        is_finite = (np.abs(low) < 1e30) & (np.abs(high) < 1e30) & (high > low)
        low, high = np.where(is_finite, low, -1.0), np.where(is_finite, high, 1.0)
        return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) in the space's dtype, which represents them exactly; infinities become its largest numbers."""
        largest = np.finfo(self.dtype).max
        low, high = (np.clip(np.asarray(x, np.float64), -largest, largest) for x in (self.low, self.high))
        return low.astype(self.dtype), high.astype(self.dtype)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        """Uniform, slightly beyond the bounds, as a policy's actions are; ±1 replaces infinite bounds."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        low = np.where(np.isfinite(low), low, -1)
        high = np.maximum(low, np.where(np.isfinite(high), high, 1))
        beyond = 0.05 * np.minimum(high - low, 1e30)
        return generator.uniform(low - beyond, high + beyond).astype(np.float32)

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... K"]) -> Distribution:
        centre, half = self.scaling
        xp = namespace(outputs)
        log_std = xp.broadcast_to(log_std + np.log(half), outputs.shape)
        return DiagonalGaussian(xp.asarray(centre) + half * outputs, log_std)

    def to_environment(self, action: np.ndarray) -> Any:
        """Cast to the space's dtype, clip to the bounds and reshape."""
        low, high = self.bounds
        taken = action
        if action.dtype != low.dtype:
            with np.errstate(over="ignore"):
                taken = action.astype(low.dtype)
        clipped = np.minimum(np.maximum(taken, low), high)  # twice as fast as np.clip
        return clipped.reshape(*action.shape[:-1], *self.shape)

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Shaped[Array, "N ..."]:
        return jnp.clip(action, jnp.asarray(self.low), jnp.asarray(self.high)).reshape(-1, *self.shape)

    def space(self) -> gymnasium.Space:
        low, high = (np.asarray(x, self.dtype).reshape(self.shape) for x in (self.low, self.high))
        return spaces.Box(low, high, self.shape, np.dtype(self.dtype).type)

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        if not np.isfinite([*self.low, *self.high]).all():
            return None
        is_outside = (action < jnp.asarray(self.low)) | (action > jnp.asarray(self.high))
        return jnp.mean(is_outside, axis=-1, dtype=jnp.float32)


@dataclass(frozen=True)
class MultiDiscreteHead(ActionHead):
    """Several independent choices."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    start: tuple[int, ...]
    dtype: str = "int64"
    """The environment's dtype."""

    @property
    def num_outputs(self) -> int:
        return sum(self.sizes)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (len(self.sizes),)

    @property
    def environment_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def max_entropy(self) -> float | None:
        return sum(math.log(n) for n in self.sizes)

    @property
    def num_choices(self) -> int:
        return sum(self.sizes)

    def flat_mask(self, mask: Any) -> Bool[Array, "M"]:
        parts = parts_of(mask, len(self.shape)) if isinstance(mask, tuple | list) else []
        if not any(map(np.ndim, parts)):
            return super().flat_mask(mask)
        parts = [as_flags(part) for part in parts]
        if [part.shape for part in parts] != [(n,) for n in self.sizes]:
            found = ", ".join(str(part.shape) for part in parts)
            raise ValueError(f"its parts have the shapes {found}, and {self.mask_form} is needed")
        return namespace(parts[0]).concatenate(parts)

    @property
    def mask_form(self) -> str:
        return f"({self.num_choices},), or a tuple of arrays of the lengths {', '.join(map(str, self.sizes))}"

    def allows_some(self, mask: Bool[Array, "... M"]) -> Any:
        parts = split_last(mask, self.sizes)
        return namespace(mask).stack([part.any(axis=-1) for part in parts], axis=-1).all(axis=-1)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        if mask is None:
            return generator.integers(0, self.sizes).astype(np.int32)
        parts = zip(self.sizes, split_last(mask, self.sizes), strict=True)
        return np.stack([random_choice(generator, n, part) for n, part in parts])

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"]) -> Distribution:
        heads = namespace(outputs).split(outputs, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)
        return MultiCategorical(tuple(Categorical(head) for head in heads))

    def to_environment(self, action: np.ndarray) -> Any:
        taken = (np.asarray(action, np.int64) + np.asarray(self.start)).astype(self.dtype)
        return taken.reshape(*taken.shape[:-1], *self.shape)

    def space(self) -> gymnasium.Space:
        sizes, start = np.reshape(self.sizes, self.shape), np.reshape(self.start, self.shape)
        return spaces.MultiDiscrete(sizes, np.dtype(self.dtype).type, start=start)

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        check_choices("action", action, np.asarray(self.sizes), refuse)


@dataclass(frozen=True)
class MultiBinaryHead(ActionHead):
    """Several independent binary switches."""

    shape: tuple[int, ...]

    @property
    def num_outputs(self) -> int:
        return math.prod(self.shape)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.num_outputs,)

    @property
    def environment_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def max_entropy(self) -> float | None:
        return self.num_outputs * math.log(2)

    @property
    def num_choices(self) -> int:
        return 2 * self.num_outputs

    def flat_mask(self, mask: Any) -> Bool[Array, "M"]:
        x = as_array(mask)
        if x.shape != self.shape or x.dtype == bool:
            return super().flat_mask(mask)
        if isinstance(x, np.ndarray) and not np.isin(x, (0, 1, 2)).all():
            raise ValueError("it holds other numbers than 0 and 1, to which a switch is bound, and 2, where it is free")
        return namespace(x).stack([x != 1, x != 0], axis=-1).reshape(-1)

    @property
    def mask_form(self) -> str:
        return f"({self.num_choices},), two for each switch, or {self.shape} with 0, 1 and 2"

    def allows_some(self, mask: Bool[Array, "... M"]) -> Any:
        return mask.reshape(*mask.shape[:-1], -1, 2).any(axis=-1).all(axis=-1)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        drawn = generator.integers(0, 2, self.num_outputs).astype(np.int8)
        if mask is None:
            return drawn
        may_be = mask.reshape(-1, 2)
        return np.where(may_be.all(axis=-1), drawn, may_be[:, 1]).astype(np.int8)

    def distribution(self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"]) -> Distribution:
        return Bernoulli(outputs)

    def to_environment(self, action: np.ndarray) -> Any:
        return np.asarray(action, np.int8).reshape(*action.shape[:-1], *self.shape)

    def space(self) -> gymnasium.Space:
        return spaces.MultiBinary(self.shape)

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        check_choices("action", action, 2, refuse)


def as_array(x: Any) -> Any:
    """Return JAX arrays, including traced ones, unchanged; convert anything else to NumPy."""
    return x if isinstance(x, jax.Array) else np.asarray(x)


def parts_of(mask: Any, depth: int) -> list[Any]:
    """Flatten nested tuples and lists down to a depth."""
    if depth == 0 or not isinstance(mask, tuple | list):
        return [mask]
    return [part for each in mask for part in parts_of(each, depth - 1)]


def as_flags(mask: Any) -> Any:
    """Convert zeros and ones to booleans.

    Raises:
        ValueError: the mask holds other values; traced arrays are not checked.
    """
    x = as_array(mask)
    if x.dtype.kind not in "biuf":
        raise ValueError(f"it holds {x.dtype}, not numbers or truth values")
    if x.dtype.kind != "b" and isinstance(x, np.ndarray) and not ((x == 0) | (x == 1)).all():
        raise ValueError("it holds other numbers than 0 and 1")
    return x.astype(bool)


def random_choice(generator: np.random.Generator, n: int, mask: Any) -> np.ndarray:
    """One of n choices, uniform over those that the mask allows."""
    chosen = generator.integers(n) if mask is None else generator.choice(np.flatnonzero(mask))
    return np.asarray(chosen, np.int32)


def head_of(space: gymnasium.Space, name: str = "The environment") -> ActionHead:
    """The head for an action space.

    Raises:
        UpslopeError: the space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(int(space.n), int(space.start))
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype or np.float32).name
        if dtype not in ACTION_DTYPES["BoxHead"]:
            raise UpslopeError(
                f"{name} takes actions of the dtype {dtype}, {space}; a Box of actions can be of "
                f"{', '.join(ACTION_DTYPES['BoxHead'])}. Where actions are whole numbers, declare Discrete or "
                "MultiDiscrete, or take floats and round them in the environment."
            )
        low, high = np.asarray(space.low, np.float64).ravel(), np.asarray(space.high, np.float64).ravel()
        return BoxHead(tuple(space.shape), tuple(low.tolist()), tuple(high.tolist()), dtype)
    if isinstance(space, spaces.MultiDiscrete):
        sizes, start = np.asarray(space.nvec).ravel(), np.asarray(space.start).ravel()
        dtype = np.dtype(space.dtype or np.int64).name
        return MultiDiscreteHead(tuple(space.nvec.shape), tuple(sizes.tolist()), tuple(start.tolist()), dtype)
    if isinstance(space, spaces.MultiBinary):
        return MultiBinaryHead(tuple(int(n) for n in space.shape))
    raise UpslopeError(unsupported(name, "action", space))


HEADS = (DiscreteHead, BoxHead, MultiDiscreteHead, MultiBinaryHead)
