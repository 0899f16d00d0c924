"""Convert actions of any space to input features of a network."""

from typing import Any

import gymnasium
import jax.numpy as jnp
from gymnasium import spaces
from jaxtyping import Array, Float, Shaped

from upslope.core.space_parts import leaf_spaces
from upslope.core.space_parts import parts_of as parts_of_space
from upslope.models.cells import range_of
from upslope.models.encoders import BoxEncoder, ObservationEncoder, encoder_of
from upslope.models.head import ActionHead


def action_features(head: ActionHead, action: Shaped[Array, "B ..."]) -> Float[Array, "B A"]:
    """The features of sampled actions, computed from the actions as the environment receives them. Choices are one-hot,
    and real numbers are in units of their half range."""
    space = counted_from_zero(head.space())
    parts = encoder_of(space, "action").leaves(head.to_compiled(action))
    ranges = encoder_of(space, "action").leaves(leaf_spaces(space))
    return jnp.concatenate(
        [scaled(part, x, mine) for (_, part, x), (_, _, mine) in zip(parts, ranges, strict=True)], -1
    )


def num_action_features(head: ActionHead) -> int:
    """A, the number of features of an action."""
    return encoder_of(counted_from_zero(head.space()), "action").num_features


def scaled(encoder: ObservationEncoder, x: Any, space: gymnasium.Space) -> Float[Array, "B K"]:
    """The features of one part."""
    features = encoder.encode(x)
    if not isinstance(encoder, BoxEncoder):
        return features
    centre, half = range_of(encoder, space)
    return (features - jnp.asarray(centre)) / jnp.asarray(half)


def counted_from_zero(space: gymnasium.Space) -> gymnasium.Space:
    """The space with choices counted from 0, as compiled environments receive them."""
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: counted_from_zero(part) for name, part in parts_of_space(space)})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([counted_from_zero(part) for _, part in parts_of_space(space)])
    return space
