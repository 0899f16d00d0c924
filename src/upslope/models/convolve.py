"""Convolutions as matrix products, because XLA's convolutions are slow inside compiled loops on CPU cores.

Inside a compiled loop, XLA runs a convolution and its gradient as plain loops. For the layers of upslope's networks on
one core, these loops took 10 to 51 times as long as the matrix products (`benchmarks/convolutions.py`). Other devices
use XLA's convolution.
"""

import math
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from upslope.models.encoders import PICTURE
from upslope.models.products import linear

LARGE, SMALL = 2**19, 2**16
"""In bytes per image. Gathered rows that take more than `LARGE` are gathered in parts; those that take at most `SMALL`
are kept for the backward pass."""


def convolve(
    x: Shaped[Array, "B H W C"], kernel: Float[Array, "O C k k"], stride: int = 1, padding: int = 0
) -> Float[Array, "B I J O"]:
    """The cross-correlation of images with a square kernel, in the layout of Equinox's `Conv2d.weight`.

    Images may be bytes, which are read as fractions of 255."""
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    if kernel.shape[-1] % stride:
        return by_convolution(x, kernel, stride)
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(by_products, stride=stride), default=partial(by_convolution, stride=stride)
    )


def fractions(x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Bytes as fractions of 255. Floats are returned unchanged."""
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32) / np.float32(PICTURE)


def by_convolution(x: Shaped[Array, "B H W C"], kernel: Float[Array, "O C k k"], stride: int) -> Array:
    """XLA's own convolution."""
    layout = ("NHWC", "OIHW", "NHWC")
    return jax.lax.conv_general_dilated(fractions(x), kernel, (stride, stride), "VALID", dimension_numbers=layout)


def by_products(x: Shaped[Array, "B H W C"], kernel: Float[Array, "O C k k"], stride: int) -> Array:
    """Matrix products of the weights with the pixels under the kernel, which are gathered into a row for each output
    pixel.

    With stride s, each square of s × s pixels is first rearranged into channels. The kernel then has k / s positions
    per side and stride 1, so that fewer and longer pieces are gathered. Bytes are gathered as bytes, because copying is
    most of the work. For the same reason, the backward pass gathers large rows again instead of reading them back.
    """
    places, num_outputs = kernel.shape[-1] // stride, kernel.shape[0]
    x, size = squares(x, stride), gathered_bytes(x.shape, kernel.shape, stride)
    height, width = x.shape[1] - places + 1, x.shape[2] - places + 1
    weights = kernel.transpose(2, 3, 1, 0).reshape(places, stride, places, stride, -1, num_outputs)
    weights = weights.transpose(0, 2, 1, 3, 4, 5)

    def product(first: int, x: Array, weights: Array) -> Array:
        """The part of the kernel that begins with this row of positions."""
        pieces = [
            x[:, i : i + height, j : j + width] for i in range(first, first + len(weights)) for j in range(places)
        ]
        # The barriers keep XLA from fusing the gathering with the conversion, and either of them with the product.
        rows = jax.lax.optimization_barrier(jnp.concatenate(pieces, axis=-1)).reshape(-1, len(pieces) * x.shape[-1])
        return linear(jax.lax.optimization_barrier(fractions(rows)), weights.reshape(rows.shape[1], num_outputs))

    if size > SMALL:
        product = jax.checkpoint(product, static_argnums=0)
    together = places if size <= LARGE else 1
    parts = [product(i, x, weights[i : i + together]) for i in range(0, places, together)]
    return reduce(jnp.add, parts).reshape(x.shape[0], height, width, num_outputs)


def gathered_bytes(images: tuple[int, ...], kernel: tuple[int, ...], stride: int) -> int:
    """The memory that `by_products` needs for the gathered rows of one image, as floats."""
    height, width = ((side - kernel[-1]) // stride + 1 for side in images[1:3])
    return 4 * height * width * math.prod(kernel[1:])


def squares(x: Shaped[Array, "B H W C"], side: int) -> Array:
    """Rearrange squares of pixels into channels, [B, H/s, W/s, s²·C]. Pixels that do not fill a square are dropped."""
    if side == 1:
        return x
    batch, height, width, channels = x.shape[0], x.shape[1] // side, x.shape[2] // side, x.shape[3]
    cut = x[:, : height * side, : width * side].reshape(batch, height, side, width, side, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, side * side * channels)


@partial(jax.checkpoint, static_argnums=(1, 2, 3))
def highest(x: Float[Array, "B H W C"], size: int, stride: int, padding: int) -> Float[Array, "B I J C"]:
    """The maximum of each window of `size` × `size` pixels (max pooling).

    The backward pass compares the windows again, so the comparisons need not be kept.
    """
    around = (padding, padding)
    x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=-jnp.inf)
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    parts = [
        x[:, i : i + stride * (height - 1) + 1 : stride, j : j + stride * (width - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    ]
    return reduce(jnp.maximum, parts)
