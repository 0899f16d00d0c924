"""The agent: a model and the statistics that normalise its observations and rewards.

The statistics are part of the agent, so they are saved, resumed and exported with it.
"""

from collections.abc import Sequence
from dataclasses import field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, PRNGKeyArray

from upslope.core.arrays import STATIC, pytree
from upslope.core.arrays import AnyArray as Array
from upslope.core.distributions import Distribution
from upslope.models.build import ModelSpec
from upslope.models.head import ActionHead
from upslope.models.model import Carry, Outputs, allowed, has_memory
from upslope.models.normaliser import RunningStatistics, normalised, start_normaliser


@pytree
class Agent:
    """Policy π_θ, critic V_θ and normalisers, for single observations or any leading batch axes."""

    model: Any
    """A `Model`."""
    normaliser: Any
    """Statistics of each real-valued array of an observation; None if nothing is normalised."""
    return_statistics: RunningStatistics
    head: ActionHead = field(metadata=STATIC)
    normalize_rewards: bool = field(metadata=STATIC)

    @property
    def normalize_observations(self) -> bool:
        """Whether the agent keeps running statistics of observations."""
        return bool(jax.tree.leaves(self.normaliser))

    def features(self, observation: Any) -> Any:
        """Observations as the model reads them: normalised if this is enabled, then prepared."""
        seen = normalised(self.normaliser, observation) if self.normalize_observations else observation
        return self.model.prepare(seen)

    def step(self, observation: Any, carry: Carry, fresh: Bool[Array, "N"]) -> tuple[Outputs, Carry]:
        """The model's outputs for N observations, one per column, and the carry after this step."""
        return self.model.step(self.features(observation), carry, fresh)

    def act(
        self, observation: Any, carry: Carry, fresh: Bool[Array, "N"], mask: Bool[Array, "N M"] | None = None
    ) -> tuple[Distribution, Carry]:
        """π_θ(·|s) for N observations, restricted to allowed actions, and the carry after this step."""
        if has_memory(self.model):
            outputs, carry = self.step(observation, carry, fresh)
            return allowed(outputs.policy, mask), carry
        return self.policy(observation, mask), carry

    def policy(self, observation: Any, mask: Bool[Array, "... M"] | None = None) -> Distribution:
        """π_θ(·|s) of a model without memory, restricted to allowed actions."""
        features = self.features(observation)
        if hasattr(self.model, "policy"):
            return allowed(self.model.policy(features), mask)
        return allowed(self.model.step(features, (), no_fresh(features))[0].policy, mask)

    def value(self, observation: Any) -> Float[Array, "..."]:
        """V_θ(s) of a model without memory, in units of the scaled reward r · `reward_scale()`."""
        return value_of(self.model, self.features(observation))

    def reward_scale(self) -> Float[Array, ""]:
        """1/σ of the running discounted return: the factor that converts the environment's rewards to the learner's.

        It is 1 without reward normalisation, and also before the first reward. If σ is below about 1e-4, scaled returns
        stay small, because 1e-8 is added to the variance."""
        if not self.normalize_rewards:
            return jnp.float32(1.0)
        variance = self.return_statistics.variance
        return jnp.where(variance > 0, 1.0 / jnp.sqrt(variance + 1e-8), 1.0)


REWARD_CAP = 10.0
"""Upper bound on a new reward or return, in σ."""
MEAN_CAP = 4.0
"""Upper bound, in σ, on the mean return, which the critic must learn first."""


def returns_seen(
    statistics: RunningStatistics,
    reward: Float[Array, "T N"],
    discounted: Float[Array, "T N"],
    valid: Bool[Array, "T N"],
) -> RunningStatistics:
    """Update the statistics of discounted returns with a batch.

    σ is at least a tenth of the largest reward and return of the batch, and at least a quarter of the mean return.
    Constant rewards are therefore not scaled by 1/√ε, the first reward after K steps without one is not scaled by √K,
    and rewards need not be clipped.
    """
    largest = jnp.max(jnp.where(valid, jnp.maximum(jnp.abs(reward), jnp.abs(discounted)), 0.0))
    seen = statistics.update(discounted, valid)
    least = jnp.maximum(largest / REWARD_CAP, jnp.abs(seen.mean) / MEAN_CAP)
    return seen._replace(variance=jnp.maximum(seen.variance, least**2))


def value_of(model: Any, features: Any) -> Float[Array, "..."]:
    """V(s) for prepared observations, from a model without memory."""
    if hasattr(model, "value"):
        return model.value(features)
    return model.step(features, (), no_fresh(features))[0].value


def no_fresh(features: Any) -> Bool[Array, "N"]:
    """Flags that mark no step as the start of an episode."""
    return jnp.zeros(jax.tree.leaves(features)[0].shape[:1], bool)


@runtime_checkable
class Acting(Protocol):
    """The part of an agent that `collect` needs."""

    @property
    def model(self) -> Any:
        """The model, which provides the initial memory."""
        ...

    @property
    def head(self) -> ActionHead:
        """The action head, which converts actions for the environment."""
        ...

    def act(
        self, observation: Any, carry: Carry, fresh: Bool[Array, "N"], mask: Bool[Array, "N M"] | None = None
    ) -> tuple[Any, Carry]:
        """A policy with `noise(key)`, `choose(noise)` and `log_prob(action)`, and the carry after the step."""
        ...


def initialise_agents(
    keys: Sequence[PRNGKeyArray],
    spec: ModelSpec,
    *,
    normalize_observations: bool = False,
    normalize_rewards: bool = False,
) -> list[Agent]:
    """Create a newly initialised agent for each key."""
    return [
        Agent(
            model=model,
            normaliser=start_normaliser(spec.encoder.normalised) if normalize_observations else None,
            return_statistics=RunningStatistics.start(()),
            head=spec.head,
            normalize_rewards=normalize_rewards,
        )
        for model in spec.build_all(keys)
    ]


def initialise_agent(key: PRNGKeyArray, spec: ModelSpec, **normalise: bool) -> Agent:
    """Create a newly initialised agent."""
    return initialise_agents([key], spec, **normalise)[0]
