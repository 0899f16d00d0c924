"""Weigh and move: evaluate(agent, rollout) → Values; improve(agent, rollout, credit) → a better agent.

Policy and critic have an optimiser each, so there is no coefficient between their losses, and stopping one early
leaves the other alone.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from upslope.core.objectives import Clip, Objective, ObjectiveState, Sample, importance_ratio
from upslope.core.types import Credit, Metrics, Rollout, Values
from upslope.learning.descent import Batch, Descent, Plan, descend, in_blocks, on_two_devices, one_after_another
from upslope.learning.health import Look, Seen
from upslope.models.agent import Actor, Agent


@dataclass(frozen=True)
class Update:
    """How an update is done. Every field is a hyperparameter of `Config`, documented there."""

    objective: Objective
    needs_critic: bool
    epochs: int
    critic_epochs: int
    minibatches: int
    max_grad_norm: float
    entropy_coefficient: float
    target_kl: float | None
    min_effective_sample_size: float | None
    normalize_advantage: bool
    apart: bool = False
    """Whether policy and critic descend on a device each, along a mesh's axis `NETWORKS`; the numbers are the same."""
    at_once: bool = False
    """Whether this is one of several seeds that go along the axis `AT_ONCE`."""

    def may_stop(self) -> bool:
        """Whether `has_gone_too_far` can say so."""
        return self.target_kl is not None or self.min_effective_sample_size is not None

    def has_gone_too_far(self, distance: "Distance") -> Bool[Array, ""]:
        """Whether the policy has left the region in which the batch still tells about it."""
        too_far = jnp.bool_(False)
        if self.target_kl is not None:
            too_far |= distance.kl > self.target_kl
        if self.min_effective_sample_size is not None:
            share = effective_share(distance.ratio, distance.squared_ratio)
            too_far |= ~(share >= self.min_effective_sample_size)
        return too_far

    def optimiser(self) -> optax.GradientTransformation:
        """Adam's direction for a gradient clipped to a global norm; the step size is applied by `descend`."""
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.scale_by_adam(eps=1e-5))

    def plan(self, epochs: int) -> Plan:
        """How one network descends."""
        return Plan(self.optimiser(), epochs, self.minibatches, in_halves=not self.at_once)


ROOM_FOR_NEW = 16
"""One state in so many may end an episode or a rollout before all successors are evaluated."""


class Learner(NamedTuple):
    """All that an update changes."""

    agent: Agent
    actor_optimiser: Any
    critic_optimiser: Any
    objective: ObjectiveState


class Distance(NamedTuple):
    """How far the policy is from the one that the batch tells about: means over a minibatch."""

    kl: Float[Array, ""]
    ratio: Float[Array, ""]
    squared_ratio: Float[Array, ""]


def begin_learning(update: Update, agent: Agent) -> Learner:
    """A learner that has not moved yet."""
    optimiser = update.optimiser()
    actor, critic = (optimiser.init(ravel_pytree(network)[0]) for network in (agent.actor, agent.critic))
    return Learner(agent, actor, critic, update.objective.init())


def evaluate(agent: Agent, rollout: Rollout, at_once: bool = False) -> Values:
    """V(s_t) and V(s_{t+1}); the latter from the true successor, also at an episode's end.

    Where s_{t+1} is the next row's observation, its value is that row's, and it is not computed again; but for seeds
    that go `at_once`, of which one could not be spared what another needs.
    """
    observation, successor = rollout.observation, rollout.next_observation
    shape = observation.shape[2:]
    value = in_blocks(agent.value, observation.reshape(-1, *shape), at_once).reshape(observation.shape[:2])
    differs = jnp.any(successor[:-1] != observation[1:], axis=tuple(range(2, observation.ndim)))
    is_new = jnp.concatenate([differs, jnp.ones_like(differs, shape=(1, *differs.shape[1:]))]).reshape(-1)
    shifted = jnp.concatenate([value[1:], value[-1:]]).reshape(-1)
    room = max(value.shape[1], value.size // ROOM_FOR_NEW)
    flat = successor.reshape(-1, *shape)

    def few() -> Array:
        (rows,) = jnp.nonzero(is_new, size=room, fill_value=value.size)
        return shifted.at[rows].set(agent.value(flat.at[rows].get(mode="clip")), mode="drop")

    def many() -> Array:
        return jnp.where(is_new, in_blocks(agent.value, flat, at_once), shifted)

    if at_once:
        return Values(value, many().reshape(value.shape))
    return Values(value, jax.lax.cond(jnp.sum(is_new) <= room, few, many).reshape(value.shape))


def improve(
    update: Update,
    learner: Learner,
    rollout: Rollout,
    credit: Credit,
    key: PRNGKeyArray,
    learning_rate: Float[Array, ""],
    imitate: Bool[Array, ""],
    look: Look | None = None,
) -> tuple[Learner, Metrics]:
    """Move policy and critic over epochs of shuffled minibatches, then adapt the objective's state.

    While `imitate`, the policy learns the recorded actions by maximum likelihood instead. A `look` adds the metrics
    `health/…`.
    """
    agent, objective = learner.agent, learner.objective
    batch = flatten(agent, rollout, credit, update.at_once)
    if update.normalize_advantage:
        batch = batch._replace(weight=standardise(batch.weight, batch.valid))
    seen_critic = agent.critic if update.needs_critic else None
    value = None if look is None else look.values(seen_critic, batch.features, rollout)
    (actor, actor_metrics), (critic, critic_metrics) = descend_both(update, learner, batch, key, learning_rate, imitate)
    after, entropy = in_blocks(partial(sample_of, actor.parameters), batch, update.at_once)
    kl = mean(after.kl, batch.valid)
    metrics = {f"policy/{name}": value for name, value in actor_metrics.items()}
    metrics |= policy_metrics(update.objective, after, batch.valid) | {"policy/entropy": mean(entropy, batch.valid)}
    metrics["policy/kl"] = kl
    if update.objective.state_name is not None:
        metrics[f"objective/{update.objective.state_name}"] = objective
    metrics |= {f"critic/{name}": value for name, value in critic_metrics.items()}
    if look is not None and value is not None:
        descended = critic if update.needs_critic else None
        metrics |= look(Seen(value, agent.reward_scale(), actor, descended, rollout, credit, batch, after))
    agent = dataclasses.replace(agent, actor=actor.parameters, critic=critic.parameters)
    adapted = jnp.where(imitate, objective, update.objective.adapt(objective, kl))
    moved = Learner(agent, actor.optimiser, critic.optimiser, adapted)
    return moved, metrics


def descend_both(
    update: Update,
    learner: Learner,
    batch: Batch,
    key: PRNGKeyArray,
    learning_rate: Float[Array, ""],
    imitate: Bool[Array, ""],
) -> tuple[tuple[Descent, Metrics], tuple[Descent, Metrics]]:
    """Policy and critic, each down its own loss."""
    agent, objective = learner.agent, learner.objective
    actor_key, critic_key = jax.random.split(key)

    def actor_loss(actor: Actor, batch: Batch) -> tuple[Array, Distance]:
        sample, entropy = sample_of(actor, batch)
        loss = update.objective.loss(objective, sample) - update.entropy_coefficient * entropy
        ratio = importance_ratio(sample)
        return jnp.where(imitate, -sample.log_prob, loss), Distance(sample.kl, ratio, ratio**2)

    def critic_loss(critic: Any, batch: Batch) -> tuple[Array, None]:
        return 0.5 * (critic(batch.features)[..., 0] - batch.target) ** 2, None

    def is_too_far(distance: Distance) -> Bool[Array, ""]:
        return ~imitate & update.has_gone_too_far(distance)

    def actor_descent() -> tuple[Descent, Metrics]:
        start = Descent(agent.actor, learner.actor_optimiser, jnp.bool_(False))
        must_stop = is_too_far if update.may_stop() else None
        return descend(update.plan(update.epochs), actor_loss, start, batch, actor_key, learning_rate, must_stop)

    def critic_descent() -> tuple[Descent, Metrics]:
        start = Descent(agent.critic, learner.critic_optimiser, jnp.bool_(False))
        if not update.needs_critic:
            return start, {}
        return descend(update.plan(update.critic_epochs), critic_loss, start, batch, critic_key, learning_rate, None)

    run = on_two_devices if update.apart else one_after_another
    return run(actor_descent, critic_descent)


def flatten(agent: Agent, rollout: Rollout, credit: Credit, at_once: bool) -> Batch:
    """[T, N] → [B], with the features and the old policy computed once."""
    valid = rollout.valid

    def rows(x: Array) -> Array:
        # Padding may hold anything, and a gradient through nan is nan even where the loss is masked.
        is_row = valid.reshape(valid.shape + (1,) * (x.ndim - 2))
        return jnp.where(is_row, x, jnp.zeros((), x.dtype)).reshape(-1, *x.shape[2:])

    features = rows(agent.encode(rollout.observation))
    return Batch(
        features=features,
        action=rows(rollout.action),
        behaviour_log_prob=rows(rollout.behaviour_log_prob),
        weight=rows(credit.weight),
        target=rows(credit.target),
        valid=valid.reshape(-1),
        old_policy=in_blocks(agent.actor, features, at_once),
    )


def sample_of(actor: Actor, batch: Batch) -> tuple[Sample, Float[Array, "B"]]:
    """What the objective sees of the batch under the actor as it is now, and the entropy."""
    policy = actor(batch.features)
    log_prob = policy.log_prob(batch.action)
    sample = Sample(log_prob, batch.behaviour_log_prob, batch.weight, batch.old_policy.kl(policy))
    return sample, policy.entropy()


def policy_metrics(objective: Objective, sample: Sample, valid: Bool[Array, "B"]) -> Metrics:
    """How far the ratio ρ = π_θ/μ went in the update, and how often it left [1−ε, 1+ε]."""
    ratio = importance_ratio(sample)
    epsilon = objective.epsilon if isinstance(objective, Clip) else 0.2
    return {
        "policy/clip_fraction": mean(jnp.abs(ratio - 1) > epsilon, valid),
        "policy/effective_sample_size": effective_sample_size(ratio, valid),
    }


def effective_sample_size(ratio: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, ""]:
    """ESS/n = (Σρ)² / (n Σρ²): 1 when the policies agree, towards 0 as they part (Kong 1992)."""
    return effective_share(mean(ratio, valid), mean(ratio**2, valid))


def effective_share(ratio: Float[Array, ""], squared_ratio: Float[Array, ""]) -> Float[Array, ""]:
    """ESS/n from the means of ρ and ρ²."""
    return ratio**2 / squared_ratio


def mean(x: Shaped[Array, "..."], valid: Bool[Array, "..."]) -> Float[Array, ""]:
    """The mean over the valid samples."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def standardise(x: Float[Array, "B"], valid: Bool[Array, "B"]) -> Float[Array, "B"]:
    """(x − mean)/std over the valid samples."""
    centred = x - mean(x, valid)
    return jnp.where(valid, centred / (jnp.sqrt(mean(centred**2, valid)) + 1e-8), 0.0)


def explained_variance(value: Float[Array, "..."], target: Float[Array, "..."], valid: Bool[Array, "..."]) -> Array:
    """1 − Var(target − V)/Var(target): 1 is a perfect critic, 0 no better than a constant, < 0 worse."""
    residual = target - value
    variance = mean((target - mean(target, valid)) ** 2, valid)
    return 1 - mean((residual - mean(residual, valid)) ** 2, valid) / (variance + 1e-12)
