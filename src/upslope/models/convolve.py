"""Convolutions as matrix products, because XLA's convolutions are slow inside compiled loops on CPU cores.

Inside a compiled loop, XLA runs a convolution and its gradient as plain loops. For the layers of upslope's networks on
one core, these loops took 9 to 60 times as long as the matrix products (`benchmarks/convolutions.py`). Other devices
use XLA's convolution.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from upslope.models.products import linear


def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "O C k k"], stride: int = 1, padding: int = 0
) -> Float[Array, "B I J O"]:
    """The cross-correlation of images with a square kernel, in the layout of Equinox's `Conv2d.weight`."""
    if padding:
        x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    if kernel.shape[-1] % stride:
        return by_convolution(x, kernel, stride)
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(by_products, stride=stride), default=partial(by_convolution, stride=stride)
    )


def by_convolution(x: Float[Array, "B H W C"], kernel: Float[Array, "O C k k"], stride: int) -> Array:
    """XLA's own convolution."""
    layout = ("NHWC", "OIHW", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=layout)


def by_products(x: Float[Array, "B H W C"], kernel: Float[Array, "O C k k"], stride: int) -> Array:
    """The sum of matrix products, one for each position in the kernel.

    With stride s, each square of s × s pixels is first rearranged into channels. The kernel then has k / s positions
    per side and stride 1, so there are fewer but larger products.
    """
    x, places = squares(x, stride), kernel.shape[-1] // stride
    num_outputs, channels = kernel.shape[:2]
    weights = kernel.transpose(2, 3, 1, 0).reshape(places, stride, places, stride, channels, num_outputs)
    weights = weights.transpose(0, 2, 1, 3, 4, 5).reshape(places * places, x.shape[-1], num_outputs)
    height, width = x.shape[1] - places + 1, x.shape[2] - places + 1
    rows = [x[:, i : i + height, j : j + width].reshape(-1, x.shape[-1]) for i in range(places) for j in range(places)]
    # The barrier keeps XLA from fusing the slicing into the product, which thus remains a plain matrix product.
    products = (linear(jax.lax.optimization_barrier(row), weight) for row, weight in zip(rows, weights, strict=True))
    return reduce(jnp.add, products).reshape(x.shape[0], height, width, num_outputs)


def squares(x: Float[Array, "B H W C"], side: int) -> Array:
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
