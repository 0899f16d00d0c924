"""Map each observation to one of a fixed number of cells, so that an array can count visits.

If only a few values are possible, each has its own cell. Otherwise, they are hashed: integers (boards of a grid world,
multiple choices) by their exact values, and real numbers and pictures by the signs of random projections, so that
nearby observations share a cell (Charikar 2002; Tang et al. 2017, #Exploration,
https://arxiv.org/abs/1611.04717, section 2.2).
"""

import math
from dataclasses import field
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, Int, UInt32

from upslope.core.arrays import STATIC, pytree
from upslope.core.space_parts import leaf_spaces
from upslope.models.encoders import (
    BoxEncoder,
    DiscreteEncoder,
    ImageEncoder,
    MultiBinaryEncoder,
    MultiDiscreteEncoder,
    ObservationEncoder,
)

WORD = 32
"""Number of bits in a word. Signs are packed into words."""
PICTURE_SIDE = 36
"""Images with a side shorter than this are compared exactly, since they are more likely to be grid-world boards than
pictures."""
MANY = 8
"""If there are more features than this, and all of their ranges begin at 0, they are measured from 0 rather than from
the middle of their range. Otherwise, most features of a sparse observation would have the same value and would
determine all signs."""


@pytree
class Cells:
    """Maps observations to cells 0 … `count` − 1."""

    projections: dict[str, Float[Array, "D B"]]
    """The random directions for each real-valued part, keyed by part. Their last component multiplies a constant 1."""
    multipliers: UInt32[Array, "W"]
    """An odd number for each word of an observation; empty if every observation has its own cell."""
    encoder: ObservationEncoder = field(metadata=STATIC)
    count: int = field(metadata=STATIC)
    ranges: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...] = field(metadata=STATIC)
    """(key, centre, half range) of each real-valued part; projections read the part in units of the half range."""

    @property
    def are_exact(self) -> bool:
        """Whether every observation has its own cell."""
        return self.multipliers.size == 0

    def __call__(self, observation: Any) -> Int[Array, "..."]:
        """The cell of each observation, for any leading axes."""
        leaves = list(self.encoder.leaves(observation))
        if self.are_exact:
            index: Any = 0
            for _, encoder, x in leaves:
                for digit, size in digits_of(encoder, x):
                    index = index * size + digit
            return index
        words = jnp.concatenate([self.words(key, encoder, x) for key, encoder, x in leaves], axis=-1)
        mixed = mix(jnp.sum(words * self.multipliers, axis=-1, dtype=jnp.uint32))
        return (mixed % jnp.uint32(self.count)).astype(jnp.int32)

    def words(self, key: str, encoder: ObservationEncoder, x: Any) -> UInt32[Array, "... W"]:
        """A part of the observation as 32-bit words: its integers, or the signs of its projections."""
        if key not in self.projections:
            batch = x.ndim - len(encoder.shapes)
            return mix(x.astype(jnp.int32).reshape(*x.shape[:batch], -1).astype(jnp.uint32))
        centre, half = next(numbers for name, *numbers in self.ranges if name == key)
        scaled = (encoder.encode(x) - jnp.asarray(centre)) / jnp.asarray(half)
        directions = self.projections[key]
        bits = (scaled @ directions[:-1] + directions[-1] > 0).reshape(*scaled.shape[:-1], -1, WORD)
        powers = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)
        return mix(jnp.sum(bits * powers, axis=-1, dtype=jnp.uint32))


def cells_of(
    encoder: ObservationEncoder, space: gymnasium.Space, count: int, bits: int, generator: np.random.Generator
) -> Cells:
    """Create the cells of an observation space.

    If at most `count` observations are possible, each has its own cell. Otherwise, they are hashed to `count` cells.
    `bits`, a multiple of 32, is the number of signs for a real-valued part. More bits give smaller cells.
    """
    leaves = [(key, inner, part) for key, inner, part in encoder.leaves(leaf_spaces(space))]
    sizes = [num_values(inner) for _, inner, _ in leaves]
    finite = [size for size in sizes if size is not None]
    if len(finite) == len(sizes) and math.prod(finite) <= count:
        return Cells({}, jnp.zeros(0, jnp.uint32), encoder, math.prod(finite), ())
    projections, ranges, num_words = {}, [], 0
    for key, inner, part in leaves:
        if is_whole(inner):
            num_words += math.prod(inner.shapes)
            continue
        drawn = generator.standard_normal((inner.num_features + 1, bits)).astype(np.float32)
        projections[key] = jnp.asarray(drawn)
        ranges.append((key, *range_of(inner, part)))
        num_words += bits // WORD
    odd = generator.integers(0, 2**31, num_words, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return Cells(projections, jnp.asarray(odd), encoder, count, tuple(ranges))


def mix(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Mix the bits of each word, so that even small numbers differ in all bits (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def num_values(encoder: ObservationEncoder) -> int | None:
    """The number of possible values for a part of an observation; None if it is real-valued or an image."""
    if isinstance(encoder, DiscreteEncoder):
        return encoder.n
    if isinstance(encoder, MultiDiscreteEncoder):
        return math.prod(encoder.sizes)
    return 2 ** math.prod(encoder.shape) if isinstance(encoder, MultiBinaryEncoder) else None


def digits_of(encoder: ObservationEncoder, x: Any) -> list[tuple[Array, int]]:
    """The digits of a part with finitely many values, counted from 0, and the base of each."""
    if isinstance(encoder, DiscreteEncoder):
        return [((x - encoder.start).astype(jnp.int32), encoder.n)]
    if isinstance(encoder, MultiDiscreteEncoder):
        flat = x.reshape(*x.shape[: x.ndim - len(encoder.shape)], -1)
        bases = zip(encoder.sizes, encoder.start, strict=True)
        return [((flat[..., i] - start).astype(jnp.int32), size) for i, (size, start) in enumerate(bases)]
    assert isinstance(encoder, MultiBinaryEncoder)
    flat = x.reshape(*x.shape[: x.ndim - len(encoder.shape)], -1).astype(jnp.int32)
    return [(flat[..., i], 2) for i in range(flat.shape[-1])]


def is_whole(encoder: ObservationEncoder) -> bool:
    """Whether a part consists of integers that are compared exactly, i.e. anything but real numbers and pictures."""
    if isinstance(encoder, ImageEncoder):
        return encoder.is_board or max(sorted(encoder.shape)[-2:]) < PICTURE_SIDE
    return not isinstance(encoder, BoxEncoder)


def range_of(encoder: ObservationEncoder, space: gymnasium.Space) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(centre, half range) for each feature, or one pair for all features. They follow from the bounds if these are
    finite; otherwise they are 0 and 1."""
    if not isinstance(encoder, BoxEncoder) or not isinstance(space, spaces.Box):
        return (0.5,), (0.5,)  # a picture's features range from 0 to 1
    low, high = (np.asarray(x, np.float64).ravel() for x in (space.low, space.high))
    is_finite = (np.abs(low) < 1e6) & (np.abs(high) < 1e6) & (high > low)
    begins_at_zero = (low == 0).all() and low.size > MANY
    low, high = np.where(is_finite, low, -1.0), np.where(is_finite, high, 1.0)
    centre = np.zeros_like(low) if begins_at_zero else (low + high) / 2
    return tuple(centre.tolist()), tuple(((high - low) / 2).tolist())
