"""Observation encoders, which convert an environment's arrays to a network's input features.

An `ObservationEncoder` is a small hashable record. It is stored in config.json, so that a saved agent can be rebuilt
without its environment. To support another kind of space, add a record here and to `ENCODERS`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import is_shape, namespace
from upslope.core.keys import key_within
from upslope.core.space_descriptions import MAX_DEPTH
from upslope.core.space_parts import parts_of
from upslope.errors import UpslopeError
from upslope.models.description import unread_parts

Refuse = Any
"""A function that turns a reason into an `UpslopeError`."""


class ObservationEncoder(ABC):
    """Encodes the observations from one space."""

    @property
    @abstractmethod
    def shapes(self) -> Any:
        """The shape of each array of an observation: a pytree with the observation's structure."""

    @property
    @abstractmethod
    def normalised(self) -> Any:
        """The shape of each array that can be normalised because it is real-valued; None for all other arrays."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """D, the length of the feature vector."""

    @abstractmethod
    def encode(self, observation: Any) -> Float[Array, "... D"]:
        """Encode observations as feature vectors: [..., *shape] → [..., D]."""

    @abstractmethod
    def space(self) -> gymnasium.Space:
        """The observation space that a user's model receives, without the original bounds."""

    def leaves(self, observation: Any, key: str | None = None) -> Iterator[tuple[str, "ObservationEncoder", Any]]:
        """(key, encoder, array) for each array of an observation; a nested key is written outer/inner, and the key of
        an observation that is a single array is empty."""
        yield key or "", self, observation

    def check(self, name: str, arrays: Mapping[str, np.ndarray], refuse: Refuse) -> None:
        """Reject recorded observations that are outside the space; `name` names their arrays."""
        return

    def num_batch_axes(self, observation: Any) -> int | None:
        """0 for one observation, 1 for a batch, and None for anything else. `observation` has the space's structure."""
        axes = jax.tree.map(batch_axes, self.shapes, observation, is_leaf=is_shape)
        counts = set(jax.tree.leaves(axes))
        if counts == {1} and len({len(x) for x in jax.tree.leaves(observation)}) > 1:
            return None
        return counts.pop() if len(counts) == 1 and counts <= {0, 1} else None


def batch_axes(shape: tuple[int, ...], x: Any) -> int:
    """The number of axes before this shape; −1 if the array's shape does not end in it."""
    count = x.ndim - len(shape)
    return count if count >= 0 and x.shape[count:] == shape else -1


@dataclass(frozen=True)
class FlatEncoder(ObservationEncoder):
    """An array of any shape whose numbers are the features."""

    shape: tuple[int, ...]

    @property
    def shapes(self) -> tuple[int, ...]:
        return self.shape

    @property
    def num_features(self) -> int:
        return math.prod(self.shape)

    def flattened(self, observation: Shaped[Array, "..."]) -> Shaped[Array, "... D"]:
        """Flatten observations without converting their numbers."""
        return observation.reshape(*observation.shape[: observation.ndim - len(self.shape)], self.num_features)

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        return self.flattened(observation).astype(np.float32)


@dataclass(frozen=True)
class BoxEncoder(FlatEncoder):
    """A Box observation of any shape, flattened."""

    @property
    def normalised(self) -> tuple[int, ...]:
        return self.shape

    def space(self) -> gymnasium.Space:
        return spaces.Box(-np.inf, np.inf, self.shape, np.float32)


PICTURE, BOARD = 255.0, 16
"""The largest value in a picture, and the longest side of a board. The latter is also the largest number in a board
with longer sides."""


@dataclass(frozen=True)
class ImageEncoder(FlatEncoder):
    """Images of numbers from 0 to 255, kept as bytes until a network reads them.

    Images of up to 16 cells per side, or of numbers up to 16, are boards, whose numbers denote kinds of objects rather
    than brightness. Their features are log(1 + x), which separates 0, 1 and 2 well. Other images are pictures, whose
    features are x / 255.
    """

    has_kinds: bool = False
    """Whether the numbers are at most 16."""

    @property
    def is_board(self) -> bool:
        """Whether the numbers denote kinds of objects."""
        layout = image_layout(self.shape, is_bytes=True)
        return self.has_kinds or layout is None or max(layout.size[:2]) <= BOARD

    @property
    def normalised(self) -> None:
        return None

    def scaled(self, images: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Images as floating-point numbers of magnitude about 1."""
        if isinstance(images, np.ndarray):
            return self.scaled_numbers(images)
        # In one long row, because on CPUs XLA vectorises only the last axis, and an image's last axis is short. The
        # barrier keeps XLA from moving the reshaping behind the arithmetic.
        row = jax.lax.optimization_barrier(images.reshape(-1))
        if self.is_board and not jnp.issubdtype(row.dtype, jnp.floating):
            # Most boards hold only 0 and 1, for which log(1 + x) = x log 2, bit for bit, at a fraction of the cost.
            return jax.lax.cond(jnp.all(row <= 1), binary_scaled, self.scaled_numbers, row).reshape(images.shape)
        return self.scaled_numbers(row).reshape(images.shape)

    def scaled_numbers(self, numbers: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """Like `scaled`, in the given layout."""
        x = numbers.astype(np.float32)
        return namespace(x).log1p(x) if self.is_board else x / np.float32(PICTURE)

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        return self.scaled(self.flattened(observation))

    def space(self) -> gymnasium.Space:
        return spaces.Box(0, 255, self.shape, np.uint8)


def binary_scaled(numbers: Shaped[Array, "N"]) -> Float[Array, "N"]:
    """log(1 + x) of zeros and ones."""
    return numbers.astype(np.float32) * np.float32(math.log(2))


@dataclass(frozen=True)
class ImageLayout:
    """Which axes of an array are an image's height and width. All others are channels."""

    shape: tuple[int, ...]
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width = self.shape[self.height], self.shape[self.width]
        return height, width, math.prod(self.shape) // (height * width)

    def channels_last(self, images: Shaped[Array, "..."]) -> Shaped[Array, "... H W C"]:
        """Images [..., *shape] as [..., height, width, channels]."""
        batch = images.ndim - len(self.shape)
        others = [axis for axis in range(len(self.shape)) if axis not in (self.height, self.width)]
        axes = [*range(batch), *(batch + axis for axis in (self.height, self.width, *others))]
        return images.transpose(axes).reshape(*images.shape[:batch], *self.size)


def image_layout(shape: tuple[int, ...], *, is_bytes: bool) -> ImageLayout | None:
    """The layout of images of this shape, or None if images cannot have this shape.

    Bytes with two axes form a grey image. With three axes, the shorter of the first and the last axis holds the
    channels; if they are equal, the last one does. A fourth axis, in front, holds frames. An image must have at least 5
    cells per side if it consists of floats, and at least 3 if it consists of bytes.
    """
    if len(shape) == 2 and is_bytes:
        layout = ImageLayout(shape, 0, 1)
    elif len(shape) in (3, 4):
        first = len(shape) - 3
        start = first if shape[-1] <= shape[first] else first + 1
        layout = ImageLayout(shape, start, start + 1)
    else:
        return None
    return layout if min(layout.size[:2]) >= (3 if is_bytes else 5) else None


@dataclass(frozen=True)
class DiscreteEncoder(ObservationEncoder):
    """A Discrete observation, encoded one-hot."""

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


@dataclass(frozen=True)
class MultiDiscreteEncoder(ObservationEncoder):
    """A MultiDiscrete observation, with each component encoded one-hot."""

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    start: tuple[int, ...]

    @property
    def shapes(self) -> tuple[int, ...]:
        return self.shape

    @property
    def normalised(self) -> None:
        return None

    @property
    def num_features(self) -> int:
        return sum(self.sizes)

    @cached_property
    def meanings(self) -> tuple[np.ndarray, np.ndarray]:
        """The component to which each feature belongs, and the value that it indicates."""
        which = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return which, np.concatenate([start + np.arange(n) for start, n in zip(self.start, self.sizes, strict=True)])

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        batch = observation.shape[: observation.ndim - len(self.shape)]
        which, what = self.meanings
        return (observation.reshape(*batch, len(self.sizes))[..., which] == what).astype(np.float32)

    def space(self) -> gymnasium.Space:
        sizes, start = np.reshape(self.sizes, self.shape), np.reshape(self.start, self.shape)
        return spaces.MultiDiscrete(sizes, start=start)

    def check(self, name: str, arrays: Mapping[str, np.ndarray], refuse: Refuse) -> None:
        start, sizes = np.reshape(self.start, self.shape), np.reshape(self.sizes, self.shape)
        check_choices(name, arrays[name] - start, sizes, refuse)


@dataclass(frozen=True)
class MultiBinaryEncoder(FlatEncoder):
    """A MultiBinary observation, flattened."""

    @property
    def normalised(self) -> None:
        return None

    def space(self) -> gymnasium.Space:
        return spaces.MultiBinary(self.shape)

    def check(self, name: str, arrays: Mapping[str, np.ndarray], refuse: Refuse) -> None:
        check_choices(name, arrays[name], 2, refuse)


class CompositeEncoder(ObservationEncoder):
    """Several observations, whose features are concatenated in the order of their keys."""

    @property
    @abstractmethod
    def children(self) -> tuple[tuple[Any, ObservationEncoder], ...]:
        """(key, encoder) pairs of the parts."""

    @property
    def num_features(self) -> int:
        return sum(part.num_features for _, part in self.children)

    def leaves(self, observation: Any, key: str | None = None) -> Iterator[tuple[str, ObservationEncoder, Any]]:
        for name, part in self.children:
            yield from part.leaves(observation[name], key_within(key, name))

    def encode(self, observation: Any) -> Float[Array, "... D"]:
        features: Any = [part.encode(observation[key]) for key, part in self.children]
        if isinstance(features[0], np.ndarray):
            joined: Any = np.concatenate(features, axis=-1)
            return joined
        # Keep normalisation from fusing with the concatenation, which would make rounding depend on the program.
        return jnp.concatenate(jax.lax.optimization_barrier(features), axis=-1)

    def check(self, name: str, arrays: Mapping[str, np.ndarray], refuse: Refuse) -> None:
        for key, part in self.children:
            part.check(f"{name}[{key!r}]", arrays, refuse)


@dataclass(frozen=True)
class DictEncoder(CompositeEncoder):
    """A Dict of observations."""

    parts: tuple[tuple[str, ObservationEncoder], ...]
    """(key, encoder) pairs, sorted by key."""

    @property
    def children(self) -> tuple[tuple[Any, ObservationEncoder], ...]:
        return self.parts

    @property
    def shapes(self) -> dict[str, Any]:
        return {key: part.shapes for key, part in self.parts}

    @property
    def normalised(self) -> dict[str, Any]:
        return {key: part.normalised for key, part in self.parts}

    def space(self) -> gymnasium.Space:
        return spaces.Dict({key: part.space() for key, part in self.parts})


@dataclass(frozen=True)
class TupleEncoder(CompositeEncoder):
    """A Tuple of observations."""

    parts: tuple[ObservationEncoder, ...]

    @property
    def children(self) -> tuple[tuple[Any, ObservationEncoder], ...]:
        return tuple(enumerate(self.parts))

    @property
    def shapes(self) -> tuple[Any, ...]:
        return tuple(part.shapes for part in self.parts)

    @property
    def normalised(self) -> tuple[Any, ...]:
        return tuple(part.normalised for part in self.parts)

    def space(self) -> gymnasium.Space:
        return spaces.Tuple([part.space() for part in self.parts])


def check_choices(name: str, x: np.ndarray, sizes: Any, refuse: Refuse) -> None:
    """Reject values other than integers in [0, `sizes`)."""
    if x.dtype.kind not in "iub" or (x < 0).any() or (x >= sizes).any():
        raise refuse(f"`{name}` must contain integers that are at least 0 and below {np.asarray(sizes).tolist()}")


def encoder_of(space: gymnasium.Space, name: str) -> ObservationEncoder:
    """The encoder for an observation space.

    Raises:
        UpslopeError: parts of the space are not supported; the message names them.
    """
    unread = list(unreadable(space, ""))
    if unread:
        raise UpslopeError(unread_parts(name, space, unread))
    return encoder_of_part(space, name, "")


def unreadable(space: gymnasium.Space, key: str, depth: int = 0) -> Iterator[tuple[str, gymnasium.Space]]:
    """The unsupported parts of a space, with their keys; the key "" means the space itself."""
    parts = list(parts_of(space))
    has_names = not isinstance(space, spaces.Dict) or all(isinstance(index, str) for index, _ in parts)
    if parts and has_names and depth < MAX_DEPTH:
        for index, part in parts:
            yield from unreadable(part, f"{key}/{index}" if key else str(index), depth + 1)
    elif not isinstance(space, READ) or not np.prod(space.shape or (1,)):  # an array without numbers cannot be read
        yield key, space


def encoder_of_part(space: gymnasium.Space, name: str, key: str) -> ObservationEncoder:
    """The encoder for the part of an observation under this key."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = [(i, encoder_of_part(x, name, f"{key}/{i}" if key else str(i))) for i, x in parts_of(space)]
        if isinstance(space, spaces.Dict):
            return DictEncoder(tuple(sorted(parts, key=lambda part: part[0])))
        return TupleEncoder(tuple(part for _, part in parts))
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        sizes: list[int] = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).tolist()
        start: list[int] = np.ravel(space.start).tolist()
        if any(max(abs(first), abs(first + n)) >= 2**31 for first, n in zip(start, sizes, strict=True)):
            raise UpslopeError(
                f"{name} observes {space}{at(key)}, whose values do not fit into 32 bits. Count from 0 in the "
                "environment."
            )
        if isinstance(space, spaces.Discrete):
            return DiscreteEncoder(int(space.n), int(space.start))
        return MultiDiscreteEncoder(tuple(space.nvec.shape), tuple(sizes), tuple(start))
    if isinstance(space, spaces.MultiBinary):
        return MultiBinaryEncoder(tuple(int(n) for n in space.shape))
    assert isinstance(space, spaces.Box)
    if space.dtype == np.uint8 and len(space.shape) >= 2:
        return ImageEncoder(tuple(int(n) for n in space.shape), bool((space.high <= BOARD).all()))
    return BoxEncoder(tuple(int(n) for n in space.shape))


def at(key: str) -> str:
    """The location of a part, for messages."""
    return f" at `{key}`" if key else ""


READ = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Supported leaf spaces; Dict and Tuple are composed of these."""
ENCODERS = (
    BoxEncoder,
    ImageEncoder,
    DiscreteEncoder,
    MultiDiscreteEncoder,
    MultiBinaryEncoder,
    DictEncoder,
    TupleEncoder,
)
