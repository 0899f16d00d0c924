"""Action heads: from a network's outputs to a distribution over actions, and from actions to the environment.

An `ActionHead` is a small hashable record, kept in config.json. It defines the shape of an action, its check and
its description. To support another kind of space, add a record here and to `HEADS`. An action of several parts is
one vector from the policy to the file; `to_environment` and `to_compiled` give it the structure of its space.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    VARIANCE_FLOOR,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
    SquashedGaussian,
    StateDependentNoise,
    split_last,
    sum_of,
)
from upslope.core.space_descriptions import ACTION_DTYPES, MAX_DEPTH
from upslope.core.space_parts import parts_of as parts_of_space
from upslope.errors import UpslopeError
from upslope.models.description import OF_THE_POLICY, unsupported
from upslope.models.encoders import Refuse, at, check_choices


class ActionHead(ABC):
    """Describes the actions of one space."""

    is_continuous = False
    """Whether actions are real vectors, which determines a run's defaults."""
    num_scales = 0
    """Number of state-independent log σ parameters."""
    sample_dtype: Any = np.int32
    """The dtype of an action as the policy samples it."""
    num_features = 0
    """H, the number of activations of the policy's last hidden layer, if the distribution reads them, else 0."""
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
        """The shape of one action as `kept` returns it."""

    @property
    def boxes(self) -> "dict[str, BoxHead]":
        """The heads of the real-valued parts, by key; the key "" means the whole action."""
        return {}

    @property
    def is_squashed(self) -> bool:
        """Whether real-valued parts are sampled before tanh."""
        return any(isinstance(box, SquashedHead) for box in self.boxes.values())

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
        """Flatten a mask to one flag per choice. It may have the form of Gymnasium's `space.sample(mask=…)` or of
        sb3-contrib, which puts all choices in one array.

        Raises:
            ValueError: the mask has another form, or holds values other than 0 and 1.
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
        """A random allowed action, in the form in which the policy samples it."""

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
        """An array for a checkpoint, which `replayed` turns back into the environment's actions; `taken` is what
        `to_environment` returned for the sampled actions."""
        return taken.copy()

    def replayed(self, kept: np.ndarray) -> Any:
        """The environment's actions, from an array that `kept` returned."""
        return kept

    def in_space(self, space: gymnasium.Space) -> "ActionHead":
        """This head with the dtype of actions in an equal space; older runs did not record the dtype."""
        return head_of(space)

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
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
    def kept_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def max_entropy(self) -> float | None:
        return math.log(self.n)

    @property
    def num_choices(self) -> int:
        return self.n

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        return random_choice(generator, self.n, mask)

    def distribution(
        self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"], features: Any = None
    ) -> Distribution:
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
    has_state_std: bool = field(default=False, metadata=OF_THE_POLICY)
    """Whether the network also outputs log σ, which is added to the parameter log σ and clipped to `LOG_STD`."""
    is_continuous = True
    sample_dtype = np.float32

    @property
    def boxes(self) -> "dict[str, BoxHead]":
        return {"": self}

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
        """(centre, half range) of each component; (0, 1) if it has an infinite bound."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        # Equal or practically infinite bounds give no scale.
        is_finite = (np.abs(low) < 1e30) & (np.abs(high) < 1e30) & (high > low)
        low, high = np.where(is_finite, low, -1.0), np.where(is_finite, high, 1.0)
        return ((low + high) / 2).astype(np.float32), ((high - low) / 2).astype(np.float32)

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

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        """Uniform, to slightly beyond the bounds like a policy's actions; ±1 replaces infinite bounds."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        low = np.where(np.isfinite(low), low, -1)
        high = np.maximum(low, np.where(np.isfinite(high), high, 1))
        beyond = 0.05 * np.minimum(high - low, 1e30)
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
        return jnp.clip(action, jnp.asarray(self.low), jnp.asarray(self.high)).reshape(-1, *self.shape)

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
        return bool(((np.abs(low) < 1e30) & (np.abs(high) < 1e30) & (high > low)).all())

    def space(self) -> gymnasium.Space:
        low, high = (np.asarray(x, self.dtype).reshape(self.shape) for x in (self.low, self.high))
        return spaces.Box(low, high, self.shape, np.dtype(self.dtype).type)

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        if not np.isfinite([*self.low, *self.high]).all():
            return None
        is_outside = (action < jnp.asarray(self.low)) | (action > jnp.asarray(self.high))
        return jnp.mean(is_outside, axis=-1, dtype=jnp.float32)


@dataclass(frozen=True)
class SquashedHead(BoxHead):
    """A real vector that tanh squashes into its bounds, which are all finite.

    The sampled action u is stored before tanh; the environment gets centre + half · tanh(u).
    """

    @property
    def mean_unit(self) -> np.ndarray:
        """1, since tanh follows the mean."""
        return np.ones(len(self.low), np.float32)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        """An action whose tanh is almost uniform."""
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
        """Zeros, since nothing is clipped."""
        return jnp.zeros(action.shape[:-1], jnp.float32)


@dataclass(frozen=True)
class StateNoiseHead(BoxHead):
    """A real vector whose exploration is a random function of the state, held over several steps (gSDE).

    log σ is a parameter for each of H features and K components, and φ are the activations of the policy's last hidden
    layer, into which no gradient flows from σ; see `StateDependentNoise`.
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
    def kept_shape(self) -> tuple[int, ...]:
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
            raise ValueError(f"its parts have the shapes {found}, but {self.mask_form} is needed")
        return namespace(parts[0]).concatenate(parts)

    @property
    def mask_form(self) -> str:
        return f"({self.num_choices},), or a tuple of arrays of lengths {', '.join(map(str, self.sizes))}"

    def allows_some(self, mask: Bool[Array, "... M"]) -> Any:
        parts = split_last(mask, self.sizes)
        return namespace(mask).stack([part.any(axis=-1) for part in parts], axis=-1).all(axis=-1)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        if mask is None:
            return generator.integers(0, self.sizes).astype(np.int32)
        parts = zip(self.sizes, split_last(mask, self.sizes), strict=True)
        return np.stack([random_choice(generator, n, part) for n, part in parts])

    def distribution(
        self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"], features: Any = None
    ) -> Distribution:
        heads = namespace(outputs).split(outputs, np.cumsum(self.sizes)[:-1].tolist(), axis=-1)
        return MultiCategorical(tuple(Categorical(head) for head in heads))

    def to_environment(self, action: np.ndarray) -> Any:
        taken = (np.asarray(action, np.int64) + np.asarray(self.start)).astype(self.dtype)
        return taken.reshape(*taken.shape[:-1], *self.shape)

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
        return action.reshape(-1, *self.shape)

    def space(self) -> gymnasium.Space:
        sizes, start = np.reshape(self.sizes, self.shape), np.reshape(self.start, self.shape)
        return spaces.MultiDiscrete(sizes, np.dtype(self.dtype).type, start=start)

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        check_choices("action", action, np.asarray(self.sizes), refuse)


@dataclass(frozen=True)
class MultiBinaryHead(ActionHead):
    """Several independent binary switches."""

    shape: tuple[int, ...]
    sample_dtype = np.int8

    @property
    def num_outputs(self) -> int:
        return math.prod(self.shape)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (self.num_outputs,)

    @property
    def kept_shape(self) -> tuple[int, ...]:
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
            raise ValueError("it may hold only 0 and 1, which fix a switch, and 2, which leaves it free")
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

    def distribution(
        self, outputs: Float[Array, "... K"], log_std: Float[Array, "... 0"], features: Any = None
    ) -> Distribution:
        return Bernoulli(outputs)

    def to_environment(self, action: np.ndarray) -> Any:
        return np.asarray(action, np.int8).reshape(*action.shape[:-1], *self.shape)

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
        return action.reshape(-1, *self.shape)

    def space(self) -> gymnasium.Space:
        return spaces.MultiBinary(self.shape)

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        check_choices("action", action, 2, refuse)


class ProductHead(ActionHead):
    """Several actions at once. A sampled action is one vector of 32-bit floats, the concatenation of its parts."""

    sample_dtype = np.float32

    @property
    @abstractmethod
    def children(self) -> tuple[tuple[Any, ActionHead], ...]:
        """(key, head) pairs of the parts, in order."""

    @abstractmethod
    def structure(self, parts: Sequence[Any]) -> Any:
        """Put one value for each part into the structure of the space."""

    @abstractmethod
    def parts_of_mask(self, mask: Any) -> list[Any] | None:
        """The mask of each part; None if the mask does not have the structure of the space."""

    @abstractmethod
    def with_heads(self, heads: Sequence[ActionHead]) -> "ProductHead":
        """This head with other heads for its parts."""

    @property
    def heads(self) -> tuple[ActionHead, ...]:
        """The heads of the parts."""
        return tuple(head for _, head in self.children)

    @property
    def is_continuous(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return any(head.is_continuous for head in self.heads)

    @property
    def num_scales(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return sum(head.num_scales for head in self.heads)

    @property
    def num_outputs(self) -> int:
        return sum(head.num_outputs for head in self.heads)

    @property
    def num_features(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return max(head.num_features for head in self.heads)

    @property
    def noise_every(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return next((head.noise_every for head in self.heads if head.num_features), 1)

    @property
    def sizes(self) -> list[int]:
        """The number of entries of each part in the vector of an action."""
        return [math.prod(head.sample_shape) for head in self.heads]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return self.sample_shape

    @property
    def boxes(self) -> dict[str, BoxHead]:
        found = [(key, inner, box) for key, head in self.children for inner, box in head.boxes.items()]
        return {f"{key}/{inner}" if inner else str(key): box for key, inner, box in found}

    @property
    def max_entropy(self) -> float | None:
        most = [head.max_entropy for head in self.heads]
        return None if None in most else sum(x for x in most if x is not None)

    @property
    def num_choices(self) -> int:
        return sum(head.num_choices for head in self.heads)

    def flat_mask(self, mask: Any) -> Any:
        parts = self.parts_of_mask(mask)
        if parts is None:
            return super().flat_mask(mask)
        flat = [self.mask_of_part(*child, part) for child, part in zip(self.children, parts, strict=True)]
        flat = [x for x in flat if x is not None]
        xp: Any = jnp if any(isinstance(x, jax.Array) for x in flat) else np
        return xp.concatenate(flat) if flat else super().flat_mask(np.zeros(0))

    def mask_of_part(self, key: Any, head: ActionHead, mask: Any) -> Any:
        """The flat mask of a part, where None allows everything; None if the part has no choices.

        Raises:
            ValueError: the mask does not fit the part.
        """
        if mask is None:
            return np.ones(head.num_choices, bool) if head.num_choices else None
        try:
            return head.flat_mask(mask)
        except ValueError as error:
            raise ValueError(f"at `{key}`, {error}") from error

    @property
    def mask_form(self) -> str:
        keys = ", ".join(repr(key) for key, head in self.children if head.num_choices)
        return f"({self.num_choices},), or a mask for each of the parts {keys}"

    def by_choices(self, mask: Bool[Array, "... M"]) -> list[Any]:
        """The mask of each part; None for parts without choices."""
        parts = split_last(mask, [head.num_choices for head in self.heads])
        return [part if head.num_choices else None for head, part in zip(self.heads, parts, strict=True)]

    def allows_some(self, mask: Bool[Array, "... M"]) -> Any:
        pairs = zip(self.heads, self.by_choices(mask), strict=True)
        found = [head.allows_some(part) for head, part in pairs if part is not None]
        return namespace(mask).stack(found, axis=-1).all(axis=-1)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        masks = [None] * len(self.heads) if mask is None else self.by_choices(mask)
        drawn = [head.random(generator, part) for head, part in zip(self.heads, masks, strict=True)]
        return np.concatenate([np.ravel(x) for x in drawn]).astype(np.float32)

    def distribution(
        self, outputs: Float[Array, "... O"], log_std: Float[Array, "... L"], features: Any = None
    ) -> Distribution:
        mine = split_last(outputs, [head.num_outputs for head in self.heads])
        scales = split_last(log_std, [head.num_scales for head in self.heads])
        parts = zip(self.heads, mine, scales, strict=True)
        return Product(tuple(head.distribution(x, s, features) for head, x, s in parts))

    def split(self, action: Any) -> list[Any]:
        """Split sampled actions [..., K] into the parts of the heads, each in its own dtype and shape."""
        pairs = zip(self.heads, split_last(action, self.sizes), strict=True)
        return [x.reshape(*x.shape[:-1], *head.sample_shape).astype(head.sample_dtype) for head, x in pairs]

    def squashed(self, action: Any) -> Any:
        pairs = zip(self.heads, split_last(action, self.sizes), strict=True)
        return namespace(action).concatenate([head.squashed(x) for head, x in pairs], axis=-1)

    def unsquashed(self, action: Any) -> Any:
        pairs = zip(self.heads, split_last(action, self.sizes), strict=True)
        return np.concatenate([head.unsquashed(x) for head, x in pairs], axis=-1)

    def to_environment(self, action: Any) -> Any:
        pairs = zip(self.heads, self.split(action), strict=True)
        return self.structure([head.to_environment(x) for head, x in pairs])

    def kept(self, action: np.ndarray, taken: Any) -> np.ndarray:
        return action

    def replayed(self, kept: np.ndarray) -> Any:
        return self.to_environment(kept)

    def in_space(self, space: gymnasium.Space) -> ActionHead:
        within = dict(parts_of_space(space))
        return self.with_heads([head.in_space(within[key]) for key, head in self.children])

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
        pairs = zip(self.heads, self.split(action), strict=True)
        return self.structure([head.to_compiled(x) for head, x in pairs])

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        """The fraction of components that are clipped, among the parts that have bounds."""
        pairs = zip(self.heads, self.split(action), self.sizes, strict=True)
        found = [(head.outside(x), size) for head, x, size in pairs]
        known = [(x, size) for x, size in found if x is not None]
        return sum_of(x * size for x, size in known) / sum(size for _, size in known) if known else None

    def check(self, action: Any, refuse: Refuse) -> None:
        for (key, head), x in zip(self.children, split_last(action, self.sizes), strict=True):
            part: Any = x.reshape(*x.shape[:-1], *head.sample_shape)
            if np.dtype(head.sample_dtype).kind == "i" and (part == np.round(part)).all():
                part = np.asarray(part, np.int64)
            head.check(part, lambda words, key=key: refuse(f"at `{key}`, {words}"))


@dataclass(frozen=True)
class DictHead(ProductHead):
    """A Dict of actions."""

    parts: tuple[tuple[str, ActionHead], ...]
    """(key, head) pairs, sorted by key."""

    @property
    def children(self) -> tuple[tuple[Any, ActionHead], ...]:
        return self.parts

    def structure(self, parts: Sequence[Any]) -> dict[str, Any]:
        return {key: part for (key, _), part in zip(self.parts, parts, strict=True)}

    def parts_of_mask(self, mask: Any) -> list[Any] | None:
        """Parts without choices may be left out, or be None."""
        if not isinstance(mask, Mapping):
            return None
        keys, needed = [key for key, _ in self.parts], [key for key, head in self.parts if head.num_choices]
        if not set(needed) <= mask.keys() <= set(keys):
            raise ValueError(f"it has the keys {', '.join(map(repr, mask))}, but needs {', '.join(map(repr, needed))}")
        return [mask.get(key) for key, _ in self.parts]

    def with_heads(self, heads: Sequence[ActionHead]) -> ProductHead:
        return DictHead(tuple((key, head) for (key, _), head in zip(self.parts, heads, strict=True)))

    def space(self) -> gymnasium.Space:
        return spaces.Dict({key: head.space() for key, head in self.parts})


@dataclass(frozen=True)
class TupleHead(ProductHead):
    """A Tuple of actions."""

    parts: tuple[ActionHead, ...]

    @property
    def children(self) -> tuple[tuple[Any, ActionHead], ...]:
        return tuple(enumerate(self.parts))

    def structure(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(parts)

    def parts_of_mask(self, mask: Any) -> list[Any] | None:
        is_flat = isinstance(mask, list) and all(x is not None and np.ndim(x) == 0 for x in mask)
        if not isinstance(mask, tuple | list) or is_flat:
            return None
        if len(mask) != len(self.parts):
            raise ValueError(f"it has {len(mask)} parts, but an action has {len(self.parts)}")
        return list(mask)

    def with_heads(self, heads: Sequence[ActionHead]) -> ProductHead:
        return TupleHead(tuple(heads))

    def space(self) -> gymnasium.Space:
        return spaces.Tuple([head.space() for head in self.parts])


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
        raise ValueError(f"it holds {x.dtype}, not numbers or booleans")
    if x.dtype.kind != "b" and isinstance(x, np.ndarray) and not ((x == 0) | (x == 1)).all():
        raise ValueError("it holds numbers other than 0 and 1")
    return x.astype(bool)


def random_choice(generator: np.random.Generator, n: int, mask: Any) -> np.ndarray:
    """One of n choices, uniform over those that the mask allows."""
    chosen = generator.integers(n) if mask is None else generator.choice(np.flatnonzero(mask))
    return np.asarray(chosen, np.int32)


def head_of(space: gymnasium.Space, name: str = "The environment") -> ActionHead:
    """The head for an action space, with a Gaussian policy for real-valued actions.

    Raises:
        UpslopeError: the space is not supported.
    """
    return head_of_part(space, name, "")


def head_of_part(space: gymnasium.Space, name: str, key: str, depth: int = 0) -> ActionHead:
    """The head for the part of an action under this key."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return product_head(space, name, key, depth)
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(int(space.n), int(space.start))
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype or np.float32).name
        if dtype not in ACTION_DTYPES["BoxHead"]:
            raise UpslopeError(
                f"{name} takes actions of dtype {dtype}{at(key)}, {space}; a Box of actions can be of "
                f"{', '.join(ACTION_DTYPES['BoxHead'])}. If actions are integers, declare Discrete or "
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
    raise UpslopeError(unsupported(name, "action", space, key))


def product_head(space: gymnasium.Space, name: str, key: str, depth: int) -> ProductHead:
    """The head for a Dict or a Tuple of actions."""
    parts = list(parts_of_space(space))
    has_names = isinstance(space, spaces.Tuple) or all(isinstance(index, str) for index, _ in parts)
    if not parts or not has_names or depth >= MAX_DEPTH:
        raise UpslopeError(unsupported(name, "action", space, key))
    heads = []
    for index, part in parts:
        place = f"{key}/{index}" if key else str(index)
        heads.append((index, head_of_part(part, name, place, depth + 1)))
        largest = int(np.max(part.n if isinstance(part, spaces.Discrete) else getattr(part, "nvec", 0)))
        if largest > MOST_CHOICES:
            raise UpslopeError(
                f"{name} has {largest:,} choices{at(place)}; a part of an action can have at most {MOST_CHOICES:,}, "
                "since it is stored as a 32-bit float. Declare several smaller choices, or a Box."
            )
    if isinstance(space, spaces.Tuple):
        return TupleHead(tuple(head for _, head in heads))
    return DictHead(tuple(sorted(heads, key=lambda part: part[0])))


def with_policy(
    head: ActionHead,
    name: str,
    *,
    kind: str = "gaussian",
    state_std: bool = False,
    log_std_init: float = 0.0,
    hidden_sizes: Sequence[int] = (),
    noise_every: int = 1,
) -> ActionHead:
    """The head with this kind of policy for its real-valued parts: gaussian, squashed or gsde.

    Raises:
        UpslopeError: such a policy cannot have these bounds, this initial log σ, or these layers.
    """
    low, high = LOG_STD
    if state_std and head.boxes and not low <= log_std_init <= high:
        raise UpslopeError(
            f"--state-dependent-std keeps log σ between {low:g} and {high:g}, but --log-std-init is {log_std_init:g}. "
            "Choose a value in this range."
        )
    for key, box in head.boxes.items():
        if kind == "squashed" and not box.is_bounded:
            raise UpslopeError(
                f"--head squashed squashes actions into finite bounds, but those of {name}{at(key)} are {box.space()}. "
                "Declare the bounds in the environment, or use --head gaussian."
            )
    if kind != "gsde":
        made = SquashedHead if kind == "squashed" else BoxHead
        return with_boxes(head, lambda box: made(box.shape, box.low, box.high, box.dtype, state_std))
    if head.boxes and state_std:
        raise UpslopeError(
            "--state-dependent-std lets the network output σ, but with --head gsde σ follows from its last hidden "
            "layer. Leave one of them out."
        )
    if head.boxes and not hidden_sizes:
        raise UpslopeError(
            "--head gsde makes its noise of the last hidden layer, and there is none. Give --hidden-sizes, e.g. 64 64."
        )
    features = hidden_sizes[-1] if hidden_sizes else 0
    return with_boxes(
        head, lambda box: StateNoiseHead(box.shape, box.low, box.high, box.dtype, False, features, noise_every)
    )


def with_boxes(head: ActionHead, changed: Callable[[BoxHead], BoxHead]) -> ActionHead:
    """The head with another head for each of its real-valued parts."""
    if isinstance(head, ProductHead):
        return head.with_heads([with_boxes(part, changed) for part in head.heads])
    return changed(head) if isinstance(head, BoxHead) else head


def without_features(head: ActionHead) -> ActionHead:
    """The head as one whose distribution needs nothing but outputs and log σ."""

    def plain(box: BoxHead) -> BoxHead:
        return BoxHead(box.shape, box.low, box.high, box.dtype) if box.num_features else box

    return with_boxes(head, plain) if head.num_features else head


LOG_STD = (-5.0, 2.0)
"""Bounds of a log σ that depends on the state, in units of the half range. Source: Yarats & Kostrikov 2020, PyTorch
implementation of Soft Actor-Critic, `log_std_bounds`."""
MOST_CHOICES = 2**24
"""The largest number of choices in a part of an action; 32-bit floats represent every integer up to here."""
HEADS = (DiscreteHead, BoxHead, MultiDiscreteHead, MultiBinaryHead, DictHead, TupleHead)
