"""The agent: a policy, a critic, and the statistics that normalise what they see.

The statistics are part of the agent, so they are saved, resumed and exported with it. Networks are separate
(Andrychowicz et al. 2021 find that better on four of five tasks), orthogonally initialised, with a small policy head.
"""

from dataclasses import field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray, Shaped

from upslope.core.arrays import ACTIVATIONS, STATIC, namespace, pytree
from upslope.core.arrays import AnyArray as Array
from upslope.core.distributions import Distribution
from upslope.models.spaces import BoxCoding, BoxHead, Coding, Head

OBSERVATION_CLIP = 10.0
"""Normalised observations are kept within ±10 standard deviations, so that one outlier cannot saturate the network."""


class RunningStatistics(NamedTuple):
    """Mean and variance of all that was seen, by the parallel update of Chan, Golub & LeVeque (1983)."""

    mean: Float[Array, "*D"]
    variance: Float[Array, "*D"]
    num_samples: Float[Array, ""]

    @staticmethod
    def start(shape: tuple[int, ...]) -> "RunningStatistics":
        """Nothing seen yet: mean 0 and variance 1, which change nothing."""
        zeros, ones = np.zeros(shape, np.float32), np.ones(shape, np.float32)
        return RunningStatistics(jnp.asarray(zeros), jnp.asarray(ones), jnp.float32(0.0))

    def update(self, x: Float[Array, "T N *D"], valid: Bool[Array, "T N"]) -> "RunningStatistics":
        """Include the valid rows of a batch."""
        is_row = valid.reshape(valid.shape + (1,) * (x.ndim - 2))
        count = jnp.sum(valid).astype(jnp.float32)
        mean = jnp.sum(jnp.where(is_row, x, 0.0), axis=(0, 1)) / jnp.maximum(count, 1)
        variance = jnp.sum(jnp.where(is_row, (x - mean) ** 2, 0.0), axis=(0, 1)) / jnp.maximum(count, 1)
        total = self.num_samples + count
        share = count / jnp.maximum(total, 1)
        shift = mean - self.mean
        merged = self.variance * (1 - share) + variance * share + shift**2 * share * (1 - share)
        return RunningStatistics(self.mean + shift * share, jnp.where(total > 0, merged, self.variance), total)


@jax.custom_vjp
def linear(x: Float[Array, "... D"], weight: Float[Array, "D K"]) -> Float[Array, "... K"]:
    """x W, whose gradient for W, xᵀg, is taken as the processor likes it."""
    return x @ weight


def _linear_forwards(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ weight, (x, weight)


def _linear_backwards(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = kept
    rows, slopes = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
    outer = jax.lax.platform_dependent(rows, slopes, cpu=_narrower_first, default=lambda x, g: x.T @ g)
    return gradient @ weight.T, outer


def _narrower_first(rows: Array, slopes: Array) -> Array:
    """xᵀg with the narrower of the two transposed first: on CPUs a product of long transposed columns is otherwise
    mostly spent on transposing the wider. Without the barriers XLA folds the transpositions into the product again."""
    fixed = jax.lax.optimization_barrier
    if slopes.shape[1] <= rows.shape[1]:
        return fixed(fixed(slopes.T) @ rows).T
    return fixed(rows.T) @ slopes


linear.defvjp(_linear_forwards, _linear_backwards)


def times(x: Float[Array, "... D"], weight: Float[Array, "... D K"]) -> Float[Array, "... K"]:
    """x W."""
    return x @ weight if isinstance(x, np.ndarray) else linear(x, weight)


@pytree
class Perceptron:
    """x → W_L … act(W_2 act(W_1 x + b_1) + b_2) … + b_L, over any leading batch axes."""

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, "_"], ...]
    activation: str = field(metadata=STATIC)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... K"]:
        act = ACTIVATIONS[self.activation]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = act(times(x, weight) + bias)
        return times(x, self.weights[-1]) + self.biases[-1]


@pytree
class Actor:
    """π_θ(·|features). `log_std` is a parameter of its own, independent of the state; empty for discrete actions."""

    network: Perceptron
    log_std: Float[Array, "K"]
    head: Head = field(metadata=STATIC)

    def __call__(self, features: Float[Array, "... D"]) -> Distribution:
        return self.head.distribution(self.network(features), self.log_std)


@pytree
class Agent:
    """Policy π_θ, critic V_θ and normalisers. Works on single observations and on any leading batch axes."""

    actor: Actor
    critic: Perceptron
    observation_statistics: RunningStatistics
    return_statistics: RunningStatistics
    coding: Coding = field(metadata=STATIC)
    normalize_observations: bool = field(metadata=STATIC)
    normalize_rewards: bool = field(metadata=STATIC)

    def encode(self, observation: Shaped[Array, "..."]) -> Float[Array, "... D"]:
        """Observation → features: flattened or one-hot, and normalised if asked for."""
        features = self.coding.encode(observation)
        if not self.normalize_observations:
            return features
        mean, variance, _ = self.observation_statistics
        xp = namespace(features)
        return xp.clip((features - mean) / xp.sqrt(variance + 1e-8), -OBSERVATION_CLIP, OBSERVATION_CLIP)

    def policy(self, observation: Shaped[Array, "..."]) -> Distribution:
        """π_θ(·|s)."""
        return self.actor(self.encode(observation))

    def value(self, observation: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """V_θ(s), in units of the scaled reward r · `reward_scale()`."""
        return self.critic(self.encode(observation))[..., 0]

    def reward_scale(self) -> Float[Array, ""]:
        """1/σ of the running discounted return, or 1: the learner's unit of reward; the facts keep theirs."""
        if not self.normalize_rewards:
            return jnp.float32(1.0)
        return 1.0 / jnp.sqrt(self.return_statistics.variance + 1e-8)


@runtime_checkable
class Acting(Protocol):
    """What collecting needs of an agent."""

    @property
    def actor(self) -> Actor:
        """Its head knows what the world takes."""
        ...

    def policy(self, observation: Shaped[Array, "..."]) -> Any:
        """Something with `noise(key)`, `choose(noise)` and `log_prob(action)`."""
        ...


def orthogonal(generator: np.random.Generator, rows: int, columns: int, gain: float) -> np.ndarray:
    """A [rows, columns] matrix with orthonormal rows or columns, times `gain` (Saxe et al. 2014).

    In NumPy: several QR decompositions batched inside one compiled program can hang XLA on few cores.
    """
    q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))
    return (gain * (q if rows >= columns else q.T)).astype(np.float32)


def initialise_perceptron(
    generator: np.random.Generator, sizes: tuple[int, ...], head_gain: float, activation: str
) -> Perceptron:
    """Hidden gain √2, biases 0, and the given gain at the last layer."""
    gains = [np.sqrt(2)] * (len(sizes) - 2) + [head_gain]
    weights = [orthogonal(generator, i, o, g) for i, o, g in zip(sizes, sizes[1:], gains, strict=False)]
    biases = [jnp.asarray(np.zeros(o, np.float32)) for o in sizes[1:]]
    return Perceptron(tuple(jnp.asarray(w) for w in weights), tuple(biases), activation)


def initialise_agent(
    key: PRNGKeyArray,
    coding: Coding,
    head: Head,
    *,
    hidden_sizes: tuple[int, ...] = (64, 64),
    activation: str = "tanh",
    log_std_init: float = 0.0,
    normalize_observations: bool = False,
    normalize_rewards: bool = False,
) -> Agent:
    """A fresh agent for a pair of spaces. The policy head has gain 0.01, so the first policy has no opinion."""
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key), np.uint32))
    inputs = coding.num_features
    actor = Actor(
        network=initialise_perceptron(generator, (inputs, *hidden_sizes, head.num_outputs), 0.01, activation),
        log_std=jnp.asarray(np.full(head.num_outputs if isinstance(head, BoxHead) else 0, log_std_init, np.float32)),
        head=head,
    )
    return Agent(
        actor=actor,
        critic=initialise_perceptron(generator, (inputs, *hidden_sizes, 1), 1.0, activation),
        observation_statistics=RunningStatistics.start((inputs,)),
        return_statistics=RunningStatistics.start(()),
        coding=coding,
        normalize_observations=normalize_observations and isinstance(coding, BoxCoding),
        normalize_rewards=normalize_rewards,
    )
