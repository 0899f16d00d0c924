"""The perceptron as a pytree, the product in its layers, and its initialisation.

A perceptron also accepts NumPy arrays, so that acting on the host needs no compiled program.
"""

from dataclasses import field
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from upslope.core.arrays import ACTIVATIONS, STATIC, pytree
from upslope.core.arrays import AnyArray as Array
from upslope.models.products import linear


def times(x: Float[Array, "... D"], weight: Float[Array, "... D K"]) -> Float[Array, "... K"]:
    """x W, for NumPy or JAX arrays."""
    return x @ weight if isinstance(x, np.ndarray) else linear(x, weight)


@pytree
class Perceptron:
    """x → W_L … act(W_2 act(W_1 x + b_1) + b_2) … + b_L, over any leading batch axes."""

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, "_"], ...]
    activation: str = field(metadata=STATIC)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... K"]:
        return self.last_layer(self.hidden(x))

    def hidden(self, x: Float[Array, "... D"]) -> Float[Array, "... H"]:
        """The activations of the last hidden layer; x itself if there is none."""
        act = ACTIVATIONS[self.activation]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = act(times(x, weight) + bias)
        return x

    def last_layer(self, x: Float[Array, "... H"]) -> Float[Array, "... K"]:
        """The outputs from the activations of the last hidden layer."""
        return times(x, self.weights[-1]) + self.biases[-1]

    def first_layer(self, x: Float[Array, "B D"]) -> Float[Array, "B K"]:
        """W_1 x + b_1, the first layer's pre-activations."""
        return x @ self.weights[0] + self.biases[0]


def orthogonal(generator: np.random.Generator, rows: int, columns: int, gain: float) -> np.ndarray:
    """A [rows, columns] matrix with orthonormal rows or columns, times `gain` (Saxe et al. 2014).

    It is computed in NumPy, because batched QR decompositions inside one compiled program can hang XLA on machines with
    few cores.
    """
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).astype(np.float32)


def initialise_perceptron(
    generator: np.random.Generator, sizes: tuple[int, ...], head_gain: float, activation: str
) -> Perceptron:
    """A perceptron with orthogonal weights, gain √2 in hidden layers and `head_gain` in the last, and zero biases."""
    gains = [np.sqrt(2)] * (len(sizes) - 2) + [head_gain]
    weights = [orthogonal(generator, i, o, g) for i, o, g in zip(sizes, sizes[1:], gains, strict=False)]
    biases = [np.zeros(o, np.float32) for o in sizes[1:]]
    # Not jnp.asarray, which compiles a program for each shape.
    placed: Any = jax.device_put((tuple(weights), tuple(biases)))
    return Perceptron(placed[0], placed[1], activation)


def generator_of(key: jax.Array) -> np.random.Generator:
    """A NumPy generator seeded by a JAX key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32))
