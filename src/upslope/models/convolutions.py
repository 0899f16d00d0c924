"""Convolutional encoders for images and boards, built from Equinox layers.

They map images [B, height, width, channels] to features [B, F].
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import Conv2d, Linear
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from upslope.core.arrays import block_by_block
from upslope.models.convolve import convolve, highest
from upslope.models.networks import orthogonal
from upslope.models.products import linear

Images = Shaped[Array, "B H W C"]
"""Floats, or bytes, which the first convolution reads as fractions of 255."""
Maps = Float[Array, "B I J K"]
PIXELS, STACK_PIXELS = 2**16, 2**13
"""For how many pixels the activations of plain layers, and of stacks, fit in a core's cache."""
MANY = 64
"""If this many images of a kind fit in a core's cache, they are so small that all are processed at once."""


def through(layer: Conv2d, x: Images) -> Maps:
    """Apply the weights of an Equinox convolution to images with channels last."""
    assert layer.bias is not None
    return convolve(x, layer.weight, layer.stride[0], layer.padding[0][0]) + layer.bias[:, 0, 0]  # pyright: ignore


class Residual(equinox.Module):
    """x + conv(relu(conv(relu(x))))."""

    first: Conv2d
    second: Conv2d

    def __call__(self, x: Images) -> Maps:
        return x + through(self.second, jax.nn.relu(through(self.first, jax.nn.relu(x))))


class Stack(equinox.Module):
    """One stack of the IMPALA network: a convolution, pooling that halves the image, and two residual blocks."""

    first: Conv2d
    blocks: tuple[Residual, Residual]

    def __call__(self, x: Images) -> Maps:
        x = highest(through(self.first, x), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return x


class Convolutions(equinox.Module):
    """Convolutions and a linear layer over all of their outputs, each followed by relu."""

    layers: tuple[Any, ...]
    last: Linear

    @property
    def num_features(self) -> int:
        """F, the number of features."""
        return int(self.last.out_features)

    def __call__(self, images: Images) -> Float[Array, "B F"]:
        flat = jax.lax.platform_dependent(self.layers, images, cpu=in_portions, default=flattened)
        assert self.last.bias is not None
        return jax.nn.relu(linear(flat, self.last.weight.T) + self.last.bias)


def through_all(layers: tuple[Any, ...], x: Images) -> Maps:
    """Apply all convolutions, each followed by relu."""
    for layer in layers:
        x = jax.nn.relu(layer(x) if isinstance(layer, Stack) else through(layer, x))
    return x


def flattened(layers: tuple[Any, ...], images: Images) -> Float[Array, "B K"]:
    """The outputs of all convolutions, as one vector per image."""
    return through_all(layers, images).reshape(images.shape[0], -1)


def in_portions(layers: tuple[Any, ...], images: Images) -> Float[Array, "B K"]:
    """Like `flattened`, with a few large images at a time, so that their activations stay in a core's cache."""
    pixels = STACK_PIXELS if isinstance(layers[0], Stack) else PIXELS
    portion = 1 << max(1, pixels // math.prod(images.shape[1:3])).bit_length() - 1
    if portion >= min(len(images), MANY):
        return flattened(layers, images)
    whole, rest = jnp.split(images, [len(images) // portion * portion])
    flat = block_by_block(partial(flattened, layers), whole, portion)
    return jnp.concatenate([flat, flattened(layers, rest)]) if len(rest) else flat


def nature(channels: int, keys: Callable[[], PRNGKeyArray]) -> tuple[Any, ...]:
    """The layers of Mnih et al. 2015."""
    sizes = ((channels, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1))
    return tuple(Conv2d(*size, key=keys()) for size in sizes)


def impala(channels: int, keys: Callable[[], PRNGKeyArray]) -> tuple[Any, ...]:
    """The residual layers of Espeholt et al. 2018."""

    def conv(inputs: int, outputs: int) -> Conv2d:
        return Conv2d(inputs, outputs, 3, padding=1, key=keys())

    widths = (channels, 16, 32, 32)
    return tuple(
        Stack(conv(i, o), (Residual(conv(o, o), conv(o, o)), Residual(conv(o, o), conv(o, o))))
        for i, o in pairwise(widths)
    )


def board(channels: int, keys: Callable[[], PRNGKeyArray]) -> tuple[Any, ...]:
    """The layer of Young and Tian 2019 (MinAtar), for small boards."""
    return (Conv2d(channels, 16, 3, key=keys()),)


NETWORKS: dict[str, tuple[Callable[..., tuple[Any, ...]], int, int]] = {
    "nature": (nature, 512, 36),
    "impala": (impala, 256, 1),
    "board": (board, 128, 3),
}
"""Network name → its layers, the number of features F, and the smallest side of an image that it accepts."""


def convolutions(
    network: str, shape: tuple[int, int, int], key: PRNGKeyArray, draw: np.random.Generator
) -> Convolutions:
    """Create a network for images [height, width, channels], with orthogonal weights of gain √2 and zero biases."""
    layers_of, num_features, _ = NETWORKS[network]
    keys = iter(jax.random.split(key, 32))
    layers = layers_of(shape[-1], lambda: next(keys))
    made = Convolutions(layers, Linear(flat_size(network, shape), num_features, key=next(keys)))
    return jax.tree.map(lambda x: redrawn(x, draw) if equinox.is_inexact_array(x) else x, made)


def flat_size(network: str, shape: tuple[int, int, int]) -> int:
    """The number of features after the convolutions, found by tracing shapes only."""

    def run(key: PRNGKeyArray, x: Array) -> Array:
        keys = iter(jax.random.split(key, 32))
        return through_all(NETWORKS[network][0](shape[-1], lambda: next(keys)), x)

    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return int(np.prod(jax.eval_shape(run, jax.random.key(0), image).shape))


def redrawn(x: Array, draw: np.random.Generator) -> Array:
    """Replace a layer's weights with an orthogonal matrix, and its bias with zeros."""
    if x.ndim < 2 or x.shape[1:] == (1, 1):  # the biases of Linear and Conv2d
        return jnp.zeros(x.shape)
    return jax.device_put(orthogonal(draw, x.shape[0], int(np.prod(x.shape[1:])), np.sqrt(2)).reshape(x.shape))
