"""Heads for real-valued actions: a Gaussian, a squashed Gaussian, and one whose noise depends on the state."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import namespace
from upslope.core.distributions import (
    VARIANCE_FLOOR,
    DiagonalGaussian,
    Distribution,
    SquashedGaussian,
    StateDependentNoise,
    split_last,
)
from upslope.models.description import OF_THE_POLICY
from upslope.models.head import ActionHead

PRACTICALLY_INFINITE = 1e30
"""Bounds at least this large are treated as infinite."""
LOG_STD = (-5.0, 2.0)
"""Bounds on a state-dependent log σ, in units of the half range. Source: Yarats & Kostrikov 2020, PyTorch
implementation of Soft Actor-Critic, `log_std_bounds`."""


@dataclass(frozen=True)
class BoxHead(ActionHead):
    """A real vector, in the environment's units.

    The network works in units of the half range: mean = centre + half · output, σ = half · exp(log_std). For components
    without bounds, `scaling` defines the centre and the half range. The sampled action is stored unclipped, and clipped
    for the environment.
    """

    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str = "float32"
    """The environment's dtype; policies sample in 32 bits."""
    has_state_std: bool = field(default=False, metadata=OF_THE_POLICY)
    """Whether the network also outputs a log σ. It is added to the parameter log σ, and the sum is clipped to
    `LOG_STD`."""
    is_continuous = True
    sample_dtype = np.float32

    @property
    def boxes(self) -> "dict[str, BoxHead]":
        return {"": self}

    @property
    def is_squashed(self) -> bool:
        return False

    def in_space(self, space: gymnasium.Space) -> ActionHead:
        return replace(self, dtype=np.dtype(space.dtype or np.float32).name)

    @property
    def num_outputs(self) -> int:
        return len(self.low) * (1 + self.has_state_std)

    @property
    def num_scales(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return len(self.low)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (len(self.low),)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return self.shape

    @cached_property
    def scaling(self) -> tuple[np.ndarray, np.ndarray]:
        """(centre, half range) for each component: those of its range, or of an interval of length 2 next to its only
        bound, or (0, 1) if it has no bound or two equal ones."""
        low, high = self.range
        return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

    @cached_property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) of the range in which an initial policy acts; see `scaling`."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        has_low, has_high = (np.abs(x) < PRACTICALLY_INFINITE for x in (low, high))
        is_open, gives_scale = ~has_low & ~has_high, high > low
        begins = np.where(is_open | ~gives_scale, -1.0, np.where(has_low, low, high - 2))
        ends = np.where(is_open | ~gives_scale, 1.0, np.where(has_high, high, low + 2))
        return begins, ends

    @property
    def mean_unit(self) -> np.ndarray:
        """The unit of the policy's mean: the half range of each component."""
        return self.scaling[1]

    @cached_property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) in the space's dtype, which represents them exactly; infinities become its largest numbers."""
        largest = np.finfo(self.dtype).max
        low, high = (np.clip(np.asarray(x, np.float64), -largest, largest) for x in (self.low, self.high))
        return low.astype(self.dtype), high.astype(self.dtype)

    @cached_property
    def bounds_in_32_bits(self) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) as 32-bit floats; bounds beyond the largest of them become infinite."""
        with np.errstate(over="ignore"):
            return np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        """Draw a uniform action, which may lie slightly beyond the bounds, as a policy's actions may. `range` replaces
        infinite bounds."""
        is_fixed = np.asarray(self.low) == np.asarray(self.high)
        low, high = (np.where(is_fixed, self.low, bound) for bound in self.range)
        beyond = 0.05 * (high - low)
        return generator.uniform(low - beyond, high + beyond).astype(np.float32)

    def distribution(
        self, outputs: Float[Array, "... O"], log_std: Float[Array, "... K"], features: Any = None
    ) -> Distribution:
        centre, half = self.scaling
        xp = namespace(outputs)
        outputs, log_std = self.mean_and_log_std(outputs, log_std)
        log_std = xp.broadcast_to(log_std + np.log(half), outputs.shape)
        return DiagonalGaussian(xp.asarray(centre) + half * outputs, log_std)

    def mean_and_log_std(
        self, outputs: Float[Array, "... O"], log_std: Float[Array, "... K"]
    ) -> tuple[Float[Array, "... K"], Float[Array, "... K"]]:
        """Mean and log σ in units of the half range."""
        if not self.has_state_std:
            return outputs, log_std
        mean, more = split_last(outputs, [len(self.low)] * 2)
        return mean, namespace(outputs).clip(log_std + more, *LOG_STD)

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
        low, high = self.bounds_in_32_bits
        return jnp.clip(action, jnp.asarray(low), jnp.asarray(high)).reshape(-1, *self.shape)

    def squashed(self, action: Any) -> Any:
        centre, half = self.scaling
        return centre + half * namespace(action).tanh(action)

    def unsquashed(self, action: Any) -> Any:
        centre, half = self.scaling
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.arctanh((action.astype(np.float64) - centre) / half).astype(np.float32)

    @property
    def is_bounded(self) -> bool:
        """Whether every component has a finite range."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        is_finite = (np.abs(low) < PRACTICALLY_INFINITE) & (np.abs(high) < PRACTICALLY_INFINITE)
        return bool((is_finite & (high > low)).all())

    def space(self) -> gymnasium.Space:
        low, high = (np.asarray(x, self.dtype).reshape(self.shape) for x in (self.low, self.high))
        return spaces.Box(low, high, self.shape, np.dtype(self.dtype).type)

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        if not (np.isfinite(self.low) | np.isfinite(self.high)).all():
            return None
        low, high = self.bounds_in_32_bits
        is_outside = (action < jnp.asarray(low)) | (action > jnp.asarray(high))
        return jnp.mean(is_outside, axis=-1, dtype=jnp.float32)


@dataclass(frozen=True)
class SquashedHead(BoxHead):
    """A real vector that tanh squashes into its bounds, all of which are finite.

    The sampled action u is stored before tanh is applied. The environment receives centre + half · tanh(u).
    """

    @property
    def is_squashed(self) -> bool:
        return True

    @property
    def mean_unit(self) -> np.ndarray:
        """The unit is 1, because tanh is applied after the mean."""
        return np.ones(len(self.low), np.float32)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        """Draw an action whose tanh is almost uniform."""
        return np.arctanh(generator.uniform(-0.999, 0.999, len(self.low))).astype(np.float32)

    def distribution(
        self, outputs: Float[Array, "... O"], log_std: Float[Array, "... K"], features: Any = None
    ) -> Distribution:
        mean, log_std = self.mean_and_log_std(outputs, log_std)
        half = tuple(self.scaling[1].tolist())
        return SquashedGaussian(mean, namespace(mean).broadcast_to(log_std, mean.shape), half)

    def to_environment(self, action: np.ndarray) -> Any:
        return super().to_environment(self.squashed(action))

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
        return super().to_compiled(self.squashed(action))

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        """Return zeros, because nothing is clipped."""
        return jnp.zeros(action.shape[:-1], jnp.float32)


@dataclass(frozen=True)
class StateNoiseHead(BoxHead):
    """A real vector whose exploration is a random function of the state, held over several steps (gSDE).

    There is one log σ parameter for each of the H features and each of the K components. The features φ are the
    activations of the policy's last hidden layer. No gradient flows into them from σ; see `StateDependentNoise`.
    """

    num_features: int = field(default=0, metadata=OF_THE_POLICY)
    noise_every: int = field(default=1, metadata=OF_THE_POLICY)

    @property
    def num_scales(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return self.num_features * len(self.low)

    def distribution(
        self, outputs: Float[Array, "... K"], log_std: Float[Array, "... E"], features: Any = None
    ) -> Distribution:
        centre, half = self.scaling
        xp = namespace(outputs)
        phi = features if isinstance(features, np.ndarray) else jax.lax.stop_gradient(features)
        std = xp.exp(log_std).reshape(*log_std.shape[:-1], self.num_features, len(self.low))
        spread = phi[..., None] * std
        log_std = 0.5 * xp.log((spread**2).sum(axis=-2) + np.float32(VARIANCE_FLOOR)) + np.log(half)
        return StateDependentNoise(xp.asarray(centre) + half * outputs, log_std, half * spread)
