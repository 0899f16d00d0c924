"""Convolutional encoders of images and boards, made of Equinox layers.

Images arrive as [B, height, width, channels] and leave as features [B, F].
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
from equinox.nn import Conv2d, Linear, MaxPool2d
from jaxtyping import Array, Float, PRNGKeyArray

from upslope.models.networks import orthogonal


class Residual(equinox.Module):
    """x + conv(relu(conv(relu(x))))."""

    first: Conv2d
    second: Conv2d

    def __call__(self, x: Float[Array, "C H W"]) -> Float[Array, "C H W"]:
        return x + self.second(jax.nn.relu(self.first(jax.nn.relu(x))))


class Stack(equinox.Module):
    """One stack of the IMPALA network: a convolution, pooling that halves the image, and two residual blocks."""

    first: Conv2d
    blocks: tuple[Residual, Residual]

    def __call__(self, x: Float[Array, "C H W"]) -> Float[Array, "K I J"]:
        x = MaxPool2d(3, 2, padding=1)(self.first(x))
        for block in self.blocks:
            x = block(x)
        return x


class Convolutions(equinox.Module):
    """Convolutions, relu, and a layer over all that they found, relu."""

    layers: tuple[Any, ...]
    last: Linear

    @property
    def num_features(self) -> int:
        """F."""
        return int(self.last.out_features)

    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, "B F"]:
        return jax.vmap(self.one)(jnp.moveaxis(images, -1, 1))

    def one(self, x: Float[Array, "C H W"]) -> Float[Array, "F"]:
        """The features of one image, channels first."""
        for layer in self.layers:
            x = layer(x) if isinstance(layer, Stack) else jax.nn.relu(layer(x))
        return jax.nn.relu(self.last(jax.nn.relu(x).reshape(-1)))


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
    """The layer of Young and Tian 2019 (MinAtar) for boards of a few cells."""
    return (Conv2d(channels, 16, 3, key=keys()),)


NETWORKS: dict[str, tuple[Callable[..., tuple[Any, ...]], int, int]] = {
    "nature": (nature, 512, 36),
    "impala": (impala, 256, 1),
    "board": (board, 128, 3),
}
"""Name → its layers, the number of features F, and the smallest side of an image that it takes."""


def convolutions(
    network: str, shape: tuple[int, int, int], key: PRNGKeyArray, draw: np.random.Generator
) -> Convolutions:
    """A fresh network for images [height, width, channels], with orthogonal weights of gain √2 and biases 0."""
    layers_of, num_features, _ = NETWORKS[network]
    keys = iter(jax.random.split(key, 32))
    layers = layers_of(shape[-1], lambda: next(keys))
    made = Convolutions(layers, Linear(flat_size(network, shape), num_features, key=next(keys)))
    return jax.tree.map(lambda x: redrawn(x, draw) if equinox.is_inexact_array(x) else x, made)


def flat_size(network: str, shape: tuple[int, int, int]) -> int:
    """The number of features after the convolutions, found without computing anything."""

    def run(key: PRNGKeyArray, x: Array) -> Array:
        keys = iter(jax.random.split(key, 32))
        for layer in NETWORKS[network][0](shape[-1], lambda: next(keys)):
            x = layer(x)
        return x

    image = jax.ShapeDtypeStruct((shape[-1], *shape[:2]), jnp.float32)
    return int(np.prod(jax.eval_shape(run, jax.random.key(0), image).shape))


def redrawn(x: Array, draw: np.random.Generator) -> Array:
    """An orthogonal matrix in place of a layer's weights, zeros in place of its bias."""
    if x.ndim < 2 or x.shape[1:] == (1, 1):  # the biases of Linear and Conv2d
        return jnp.zeros(x.shape)
    return jnp.asarray(orthogonal(draw, x.shape[0], int(np.prod(x.shape[1:])), np.sqrt(2)).reshape(x.shape))
