"""Policies as probability distributions over actions: sample, mode, log_prob, entropy, kl.

Each class holds the parameters for a whole batch: leading axes are batch axes, and the last axis is the action axis.
All quantities are in nats. Sampling and `log_prob` also accept NumPy arrays.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, PRNGKeyArray, Shaped

from upslope.core.arrays import STATIC, log_sigmoid, log_softmax, namespace, pytree, sigmoid, softplus
from upslope.core.arrays import AnyArray as Array
from upslope.errors import UpslopeError

LOG_TWO_PI = float(np.log(2 * np.pi))


class Distribution(ABC):
    """π(·|s) for a batch of states."""

    def sample(self, key: PRNGKeyArray) -> Array:
        """a ~ π(·|s)."""
        return self.choose(self.noise(key))

    @abstractmethod
    def noise(self, key: PRNGKeyArray) -> Float[Array, "..."]:
        """The random part of a sample, independent of the parameters' values."""

    def held_noise(self, key: PRNGKeyArray, held_key: PRNGKeyArray) -> Float[Array, "..."]:
        """The noise for one step. Noise that is held over several steps is drawn with `held_key`."""
        return self.noise(key)

    @abstractmethod
    def choose(self, noise: Float[Array, "..."]) -> Array:
        """The action determined by the parameters and the noise."""

    @abstractmethod
    def mode(self) -> Array:
        """argmax_a π(a|s), the deterministic action."""

    @abstractmethod
    def log_prob(self, action: Shaped[Array, "..."]) -> Float[Array, "..."]:
        """log π(a|s); a log density for continuous actions."""

    @abstractmethod
    def entropy(self) -> Float[Array, "..."]:
        """H(π(·|s)) = −E[log π(a|s)]."""

    @abstractmethod
    def kl(self, other: Any) -> Float[Array, "..."]:
        """KL(self‖other) = E_{a~self}[log self(a) − log other(a)] ≥ 0, in closed form."""

    @property
    def widths(self) -> tuple[int, int]:
        """The numbers of noise values and action values per sample, which `Product` needs for each of its parts."""
        raise UpslopeError(f"{type(self).__name__} cannot be part of a Product: give it the property `widths`.")

    @property
    def num_choices(self) -> int:
        """M, the number of choices in a mask; 0 if nothing can be forbidden."""
        return 0

    def masked(self, mask: Bool[Array, "... M"]) -> "Distribution":
        """The distribution conditioned on the allowed choices: all others get probability 0.

        The mask lists the choices of all parts of an action in order; each part needs at least one allowed choice.
        """
        raise UpslopeError(
            f"{type(self).__name__} cannot be masked, but the environment restricts which actions are "
            "allowed. Give it a "
            "method masked(mask), return one of upslope's distributions of discrete actions, or ignore masks with "
            "--no-masks."
        )

    def density(self) -> "Distribution":
        """The same distribution without the parts that only sampling needs."""
        return self

    def shifted(self, by: Float[Array, "... K"]) -> "Distribution":
        """The distribution with its mean shifted, for continuous actions."""
        raise UpslopeError(f"{type(self).__name__} has no mean for --rpo-alpha to move. Omit the flag.")


@pytree
class Categorical(Distribution):
    """One of A actions: π(a|s) = softmax(logits)_a. Actions are integers [...]."""

    logits: Float[Array, "... A"]

    @property
    def widths(self) -> tuple[int, int]:
        return self.logits.shape[-1], 1

    @property
    def num_choices(self) -> int:
        return self.logits.shape[-1]

    def log_probs(self) -> Float[Array, "... A"]:
        """log π(a|s) of every action."""
        return log_softmax(self.logits)

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... A"]:
        return jax.random.gumbel(key, self.logits.shape)

    def choose(self, noise: Float[Array, "... A"]) -> Array:
        """The Gumbel-max trick: argmax_a(logit_a + g_a) follows the softmax distribution."""
        return (self.logits + noise).argmax(axis=-1).astype(np.int32)

    def mode(self) -> Array:
        return self.logits.argmax(axis=-1).astype(np.int32)

    def log_prob(self, action: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return select(self.log_probs(), action)

    def entropy(self) -> Float[Array, "..."]:
        log_probs = self.log_probs()
        return -jnp.sum(jnp.exp(log_probs) * finite_log(log_probs), axis=-1)

    def kl(self, other: "Categorical") -> Float[Array, "..."]:
        log_probs = self.log_probs()
        return jnp.sum(divergence(jnp.exp(log_probs), log_probs, other.log_probs()), axis=-1)

    def masked(self, mask: Bool[Array, "... A"]) -> "Categorical":
        return Categorical(namespace(self.logits).where(mask, self.logits, -np.inf))


@pytree
class MultiCategorical(Distribution):
    """Several independent choices (MultiDiscrete): log π(a|s) = Σ_k log π_k(a_k|s). Actions are integers [..., K]."""

    heads: tuple[Categorical, ...]

    @property
    def widths(self) -> tuple[int, int]:
        return self.num_choices, len(self.heads)

    @property
    def num_choices(self) -> int:
        return sum(head.num_choices for head in self.heads)

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... A"]:
        keys = jax.random.split(key, len(self.heads))
        return jnp.concatenate([head.noise(k) for head, k in zip(self.heads, keys, strict=True)], axis=-1)

    def choose(self, noise: Float[Array, "... A"]) -> Array:
        parts = split_last(noise, [head.logits.shape[-1] for head in self.heads])
        chosen = [head.choose(part) for head, part in zip(self.heads, parts, strict=True)]
        return namespace(noise).stack(chosen, axis=-1)

    def mode(self) -> Array:
        modes = [head.mode() for head in self.heads]
        return namespace(modes[0]).stack(modes, axis=-1)

    def log_prob(self, action: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return sum_of(head.log_prob(action[..., k]) for k, head in enumerate(self.heads))

    def entropy(self) -> Float[Array, "..."]:
        return sum_of(head.entropy() for head in self.heads)

    def kl(self, other: "MultiCategorical") -> Float[Array, "..."]:
        return sum_of(mine.kl(theirs) for mine, theirs in zip(self.heads, other.heads, strict=True))

    def masked(self, mask: Bool[Array, "... A"]) -> "MultiCategorical":
        parts = split_last(mask, [head.logits.shape[-1] for head in self.heads])
        return MultiCategorical(tuple(head.masked(part) for head, part in zip(self.heads, parts, strict=True)))


@pytree
class Bernoulli(Distribution):
    """K independent bits (MultiBinary): π(a_k=1|s) = σ(logit_k). Actions are 0 or 1, [..., K]."""

    logits: Float[Array, "... K"]

    @property
    def widths(self) -> tuple[int, int]:
        return self.logits.shape[-1], self.logits.shape[-1]

    @property
    def num_choices(self) -> int:
        return 2 * self.logits.shape[-1]

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... K"]:
        return jax.random.uniform(key, self.logits.shape)

    def choose(self, noise: Float[Array, "... K"]) -> Array:
        return (noise < sigmoid(self.logits)).astype(np.int8)

    def mode(self) -> Array:
        return (self.logits > 0).astype(np.int8)

    def log_prob(self, action: Shaped[Array, "..."]) -> Float[Array, "..."]:
        signed = namespace(self.logits).where(action == 1, self.logits, -self.logits)
        return log_sigmoid(signed).sum(axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        on = sigmoid(self.logits)
        log_on, log_off = finite_log(log_sigmoid(self.logits)), finite_log(log_sigmoid(-self.logits))
        return -jnp.sum(on * log_on + (1 - on) * log_off, axis=-1)

    def kl(self, other: "Bernoulli") -> Float[Array, "..."]:
        on = sigmoid(self.logits)
        return jnp.sum(
            divergence(on, log_sigmoid(self.logits), log_sigmoid(other.logits))
            + divergence(1 - on, log_sigmoid(-self.logits), log_sigmoid(-other.logits)),
            axis=-1,
        )

    def masked(self, mask: Bool[Array, "... M"]) -> "Bernoulli":
        """The mask has two entries per bit: whether it may be 0, and whether it may be 1."""
        xp, may_be = namespace(self.logits), mask.reshape(*mask.shape[:-1], -1, 2)
        off_or_on = xp.where(may_be[..., 1], np.float32(np.inf), np.float32(-np.inf))
        return Bernoulli(xp.where(may_be.all(axis=-1), self.logits, off_or_on))


@pytree
class DiagonalGaussian(Distribution):
    """Independent normal components: a = μ(s) + σ ⊙ ε, ε ~ N(0, I). Actions are real and unbounded, [..., K]."""

    mean: Float[Array, "... K"]
    log_std: Float[Array, "... K"]

    @property
    def widths(self) -> tuple[int, int]:
        return self.mean.shape[-1], self.mean.shape[-1]

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... K"]:
        return jax.random.normal(key, self.mean.shape)

    def choose(self, noise: Float[Array, "... K"]) -> Array:
        return self.mean + namespace(self.log_std).exp(self.log_std) * noise

    def mode(self) -> Array:
        return self.mean

    def shifted(self, by: Float[Array, "... K"]) -> "DiagonalGaussian":
        return DiagonalGaussian(self.mean + by, self.log_std)

    def log_prob(self, action: Shaped[Array, "..."]) -> Float[Array, "..."]:
        z = (action - self.mean) * namespace(self.log_std).exp(-self.log_std)
        return -(0.5 * z**2 + self.log_std + 0.5 * LOG_TWO_PI).sum(axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        return jnp.sum(self.log_std + 0.5 * (1 + LOG_TWO_PI), axis=-1)

    def kl(self, other: "DiagonalGaussian") -> Float[Array, "..."]:
        ratio = jnp.exp(2 * (self.log_std - other.log_std))
        shift = ((self.mean - other.mean) * jnp.exp(-other.log_std)) ** 2
        return jnp.sum(0.5 * (ratio + shift - 1) + other.log_std - self.log_std, axis=-1)


VARIANCE_FLOOR = 1e-6
"""Added to the variance of `StateDependentNoise`, whose features may all be 0."""


@pytree
class StateDependentNoise(DiagonalGaussian):
    """Exploration with noise that is a function of the state and is held over several steps: a = μ(s) + φ(s)ᵀ Θ.

    Θ [H, K] with Θ_ik ~ N(0, σ_ik²) is drawn only every few steps; in between, equal states get equal actions. Given
    only s, the components are independent and normal. Probability, entropy and KL refer to this distribution:

        a_k | s ~ N(μ_k(s), Σ_i φ_i(s)² σ_ik² + 1e-6).

    Source: Raffin et al. (2021), Smooth Exploration for Robotic Reinforcement Learning,
    https://arxiv.org/abs/2005.05719, eq. 6 and 7; 1e-6 is from Stable-Baselines3's StateDependentNoiseDistribution.
    """

    spread: Float[Array, "... H K"]
    """φ_i(s) σ_ik, in the units of the mean."""

    @property
    def widths(self) -> tuple[int, int]:
        return self.spread.shape[-2] * self.spread.shape[-1], self.mean.shape[-1]

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... E"]:
        """Θ in units of σ, as one vector."""
        return jax.random.normal(key, (*self.mean.shape[:-1], self.widths[0]))

    def held_noise(self, key: PRNGKeyArray, held_key: PRNGKeyArray) -> Float[Array, "... E"]:
        return self.noise(held_key)

    def choose(self, noise: Float[Array, "... E"]) -> Array:
        return self.mean + (self.spread * noise.reshape(self.spread.shape)).sum(axis=-2)

    def density(self) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.log_std)

    def shifted(self, by: Float[Array, "... K"]) -> DiagonalGaussian:
        return self.density().shifted(by)


@pytree
class SquashedGaussian(Distribution):
    """A normal vector u = μ(s) + σ ⊙ ε that tanh squashes into bounds: a = centre + half range ⊙ tanh(u).

    Actions are the unsquashed u, [..., K]; u determines a, but a does not determine u where tanh rounds to ±1.
    Probability and entropy refer to a, in the environment's units, and include the Jacobian of the squashing:

        log π(a|s) = log N(u; μ, σ²) − Σ_k log(half_k (1 − tanh² u_k)).

    The KL is computed between the normal vectors, because an invertible map leaves the KL unchanged.
    Source: Haarnoja et al. 2018, Soft Actor-Critic, appendix C.
    """

    mean: Float[Array, "... K"]
    log_std: Float[Array, "... K"]
    half: tuple[float, ...] = field(metadata=STATIC)
    """Half of the range of each component."""

    def shifted(self, by: Float[Array, "... K"]) -> "SquashedGaussian":
        return SquashedGaussian(self.mean + by, self.log_std, self.half)

    @property
    def normal(self) -> DiagonalGaussian:
        """The distribution of u."""
        return DiagonalGaussian(self.mean, self.log_std)

    @property
    def widths(self) -> tuple[int, int]:
        return self.normal.widths

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... K"]:
        return self.normal.noise(key)

    def choose(self, noise: Float[Array, "... K"]) -> Array:
        return self.normal.choose(noise)

    def mode(self) -> Array:
        """μ, so that the environment receives the squashed μ. The density of a may have its maximum elsewhere."""
        return self.mean

    def log_prob(self, action: Shaped[Array, "..."]) -> Float[Array, "..."]:
        return self.normal.log_prob(action) - self.log_slopes(action).sum(axis=-1)

    def entropy(self) -> Float[Array, "..."]:
        """H(u) + E[Σ_k log(half_k (1 − tanh² u_k))], with the expectation computed by Gauss–Hermite quadrature.

        The error in each component is below 1e-5 for σ ≤ 1, 0.002 for σ ≤ e, and 0.1 for σ ≤ e².
        """
        points = self.mean[..., None] + jnp.exp(self.log_std)[..., None] * jnp.asarray(POINTS)
        slopes = log_tanh_slope(points) @ jnp.asarray(WEIGHTS)
        return self.normal.entropy() + jnp.sum(slopes + np.log(np.asarray(self.half, np.float32)), axis=-1)

    def kl(self, other: "SquashedGaussian") -> Float[Array, "..."]:
        return self.normal.kl(other.normal)

    def log_slopes(self, u: Float[Array, "... K"]) -> Float[Array, "... K"]:
        """log ∂a/∂u of each component."""
        return log_tanh_slope(u) + np.log(np.asarray(self.half, np.float32))


@pytree
class Product(Distribution):
    """Independent parts of different kinds: log π(a|s) = Σ_k log π_k(a_k|s).

    An action is one vector of 32-bit floats [..., K], the concatenation of the parts. A choice is stored as a whole
    number, which is exact below 2²⁴.
    """

    parts: tuple[Distribution, ...]

    @property
    def widths(self) -> tuple[int, int]:
        noise, action = zip(*(part.widths for part in self.parts), strict=True)
        return sum(noise), sum(action)

    @property
    def num_choices(self) -> int:
        return sum(part.num_choices for part in self.parts)

    def noise(self, key: PRNGKeyArray) -> Float[Array, "... E"]:
        keys = jax.random.split(key, len(self.parts))
        return jnp.concatenate([part.noise(k) for part, k in zip(self.parts, keys, strict=True)], axis=-1)

    def held_noise(self, key: PRNGKeyArray, held_key: PRNGKeyArray) -> Float[Array, "... E"]:
        keys, held = (jax.random.split(one, len(self.parts)) for one in (key, held_key))
        drawn = [part.held_noise(k, h) for part, k, h in zip(self.parts, keys, held, strict=True)]
        return jnp.concatenate(drawn, axis=-1)

    def density(self) -> "Product":
        return Product(tuple(part.density() for part in self.parts))

    def choose(self, noise: Float[Array, "... E"]) -> Float[Array, "... K"]:
        given = split_last(noise, [part.widths[0] for part in self.parts])
        return self.joined([part.choose(x) for part, x in zip(self.parts, given, strict=True)])

    def mode(self) -> Float[Array, "... K"]:
        return self.joined([part.mode() for part in self.parts])

    def log_prob(self, action: Float[Array, "... K"]) -> Float[Array, "..."]:
        return sum_of(part.log_prob(x) for part, x in zip(self.parts, self.split(action), strict=True))

    def entropy(self) -> Float[Array, "..."]:
        return sum_of(part.entropy() for part in self.parts)

    def kl(self, other: "Product") -> Float[Array, "..."]:
        return sum_of(mine.kl(theirs) for mine, theirs in zip(self.parts, other.parts, strict=True))

    def masked(self, mask: Bool[Array, "... M"]) -> "Product":
        """The mask lists the choices of all parts in order; continuous parts have none."""
        masks = split_last(mask, [part.num_choices for part in self.parts])
        pairs = zip(self.parts, masks, strict=True)
        return Product(tuple(part.masked(mine) if part.num_choices else part for part, mine in pairs))

    def split(self, action: Float[Array, "... K"]) -> list[Array]:
        """The action of each part."""
        found = split_last(action, [part.widths[1] for part in self.parts])
        pairs = zip(self.parts, found, strict=True)
        return [x[..., 0] if isinstance(part, Categorical) else x for part, x in pairs]

    def joined(self, actions: Sequence[Array]) -> Float[Array, "... K"]:
        """The inverse of `split`."""
        pairs = zip(self.parts, actions, strict=True)
        vectors = [x[..., None] if isinstance(part, Categorical) else x for part, x in pairs]
        return namespace(vectors[0]).concatenate([x.astype(np.float32) for x in vectors], axis=-1)


POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
POINTS, WEIGHTS = POINTS.astype(np.float32), (WEIGHTS / WEIGHTS.sum()).astype(np.float32)
"""Gauss–Hermite quadrature: E[f(z)] ≈ Σ_i WEIGHTS_i f(POINTS_i) for a standard normal z."""


def log_tanh_slope(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 − tanh² u) = 2 (log 2 − u − softplus(−2u)), which neither overflows nor becomes log 0."""
    return 2 * (np.float32(np.log(2)) - u - softplus(-2 * u))


def split_last(x: Shaped[Array, "... K"], sizes: Sequence[int]) -> list[Array]:
    """Split the last axis into consecutive parts of these sizes."""
    return namespace(x).split(x, np.cumsum(sizes)[:-1].tolist(), axis=-1)


def finite_log(log_prob: Float[Array, "..."]) -> Float[Array, "..."]:
    """log p, or 0 where p = 0, so that p log p takes its limit 0 and has no gradient there."""
    return jnp.where(log_prob > -jnp.inf, log_prob, 0.0)


def divergence(
    prob: Float[Array, "..."], log_prob: Float[Array, "..."], log_other: Float[Array, "..."]
) -> Float[Array, "..."]:
    """p (log p − log q) per outcome: 0 where p = 0, and infinite where q = 0 < p. Neither case has a gradient."""
    is_impossible, is_infinite = log_prob == -jnp.inf, (log_other == -jnp.inf) & (prob > 0)
    gap = jnp.where(is_impossible | (log_other == -jnp.inf), 0.0, log_prob - log_other)
    return jnp.where(is_infinite, jnp.inf, prob * gap)


def select(table: Float[Array, "... A"], index: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """table[..., index], as a sum over a one-hot mask. On CPUs, its gradient is far cheaper than a scatter."""
    xp = namespace(table)
    mask = xp.arange(table.shape[-1]) == index[..., None]
    return xp.where(mask, table, 0.0).sum(axis=-1)


def sum_of(terms) -> Float[Array, "..."]:
    """The sum of an iterable of arrays of the same shape."""
    first, *others = terms
    return sum(others, start=first)
