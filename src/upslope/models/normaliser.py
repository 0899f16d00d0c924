"""Running statistics, and the observation normaliser built from them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import is_shape, namespace

OBSERVATION_CLIP = 10.0
"""Normalised observations are clipped to ±10 standard deviations, so that one outlier cannot saturate the network."""


class RunningStatistics(NamedTuple):
    """Running mean and variance, by the parallel update of Chan, Golub & LeVeque (1983)."""

    mean: Float[Array, "*D"]
    variance: Float[Array, "*D"]
    num_samples: Float[Array, ""]

    @staticmethod
    def start(shape: tuple[int, ...]) -> "RunningStatistics":
        """The statistics before the first sample: mean 0 and variance 1, which leave inputs unchanged."""
        zeros, ones = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        placed: Any = jax.device_put((zeros, ones, np.float32(0.0)))
        return RunningStatistics(*placed)

    def update(self, x: Float[Array, "T N *D"], valid: Bool[Array, "T N"]) -> "RunningStatistics":
        """Include the valid rows of a batch."""
        # The barriers prevent fusion with neighbouring operations, which would make rounding depend on the surrounding
        # program, and hence on the number of seeds.
        before, x, valid = jax.lax.optimization_barrier((self, x, valid))
        is_row = valid.reshape(valid.shape + (1,) * (x.ndim - 2))
        count = jnp.sum(valid).astype(jnp.float32)
        # Two names for one number, which XLA therefore does not merge: see `normalise`.
        rows, again = jax.lax.optimization_barrier((jnp.maximum(count, 1), jnp.maximum(count, 1)))
        mean = jnp.sum(jnp.where(is_row, x, 0.0), axis=(0, 1)) / rows
        variance = jnp.sum(jnp.where(is_row, (x - mean) ** 2, 0.0), axis=(0, 1)) / again
        total = before.num_samples + count
        share = count / jnp.maximum(total, 1)
        shift = mean - before.mean
        merged = before.variance * (1 - share) + variance * share + shift**2 * share * (1 - share)
        merged = jnp.where(total > 0, merged, before.variance)
        return jax.lax.optimization_barrier(RunningStatistics(before.mean + shift * share, merged, total))

    def normalise(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """(x − mean)/std, clipped to ±`OBSERVATION_CLIP`. 1e-8 is added to the variance, so features whose standard
        deviation is below about 1e-4 stay small."""
        xp = namespace(x)
        mean, deviation = self.mean, xp.sqrt(self.variance + 1e-8)
        if xp is np:
            return np.clip((x - mean) / deviation, -OBSERVATION_CLIP, OBSERVATION_CLIP)
        # XLA turns the first division by a broadcast vector into a product with its reciprocal, but not a second one by
        # the same vector. Whether it merges equal divisors before that depends on how many devices share the program,
        # and hence on the number of seeds. The reciprocal is therefore explicit.
        mean, deviation = jax.lax.optimization_barrier((mean, deviation))
        return jnp.clip((x - mean) * (1 / deviation), -OBSERVATION_CLIP, OBSERVATION_CLIP)


def is_statistics(node: Any) -> bool:
    """Whether a node of a normaliser corresponds to one leaf of the observation."""
    return node is None or isinstance(node, RunningStatistics)


def start_normaliser(shapes: Any) -> Any:
    """Create a normaliser: the observation's pytree, with statistics for each leaf that has a shape in `shapes`. The
    other leaves are not real-valued and get None."""

    def start(shape: tuple[int, ...] | None) -> RunningStatistics | None:
        return None if shape is None else RunningStatistics.start(shape)

    return jax.tree.map(start, shapes, is_leaf=lambda node: node is None or is_shape(node))


def normalised(normaliser: Any, observation: Any) -> Any:
    """The observation with its real-valued leaves normalised."""
    return jax.tree.map(normalised_leaf, normaliser, observation, is_leaf=is_statistics)


def normalised_leaf(statistics: RunningStatistics | None, x: Any) -> Any:
    """A leaf of the observation, normalised if it is real-valued."""
    return x if statistics is None else statistics.normalise(x.astype(np.float32))


def updated(normaliser: Any, observation: Any, valid: Bool[Array, "T N"]) -> Any:
    """The normaliser updated with the valid rows of a batch of observations."""

    def one(statistics: RunningStatistics | None, x: Any) -> Any:
        return None if statistics is None else statistics.update(x.astype(np.float32), valid)

    return jax.tree.map(one, normaliser, observation, is_leaf=is_statistics)
