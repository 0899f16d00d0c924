"""Heads for actions that are choices: Discrete, MultiDiscrete and MultiBinary."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import namespace
from upslope.core.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    MultiCategorical,
    split_last,
)
from upslope.models.description import OMITTED_BY_DEFAULT
from upslope.models.encoders import Refuse, check_choices
from upslope.models.head import ActionHead, as_array, as_flags, parts_of, random_choice


def dtype_of(space: gymnasium.Space) -> str:
    """The name of the dtype in which the actions of a space are given, in this machine's byte order."""
    return np.dtype(space.dtype or np.int64).name


@dataclass(frozen=True)
class DiscreteHead(ActionHead):
    """One of n actions."""

    n: int
    start: int = 0
    dtype: str = field(default="int64", metadata=OMITTED_BY_DEFAULT)
    """The environment's dtype."""

    def in_space(self, space: gymnasium.Space) -> ActionHead:
        return replace(self, dtype=dtype_of(space))

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
        """Add the space's start, and convert to the space's dtype."""
        return (np.asarray(action, np.int64) + self.start).astype(self.dtype, copy=False)

    def space(self) -> gymnasium.Space:
        return spaces.Discrete(self.n, start=self.start, dtype=np.dtype(self.dtype).type)

    def check(self, action: np.ndarray, refuse: Refuse) -> None:
        check_choices("action", action, self.n, refuse)


@dataclass(frozen=True)
class MultiDiscreteHead(ActionHead):
    """Several independent choices."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    start: tuple[int, ...]
    dtype: str = "int64"
    """The environment's dtype."""

    def in_space(self, space: gymnasium.Space) -> ActionHead:
        return replace(self, dtype=dtype_of(space))

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
    """Several independent bits."""

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
            raise ValueError("it may contain only 0 and 1, which fix a bit, and 2, which leaves it free")
        return namespace(x).stack([x != 1, x != 0], axis=-1).reshape(-1)

    @property
    def mask_form(self) -> str:
        return f"({self.num_choices},), two for each bit, or {self.shape} with 0, 1 and 2"

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
