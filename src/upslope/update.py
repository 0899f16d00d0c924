"""Weigh and move: evaluate(agent, rollout) → Values; improve(agent, rollout, credit) → a better agent.

Policy and critic have an optimiser each, so there is no coefficient between their losses, and stopping one early
leaves the other alone.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from upslope.agent import Actor, Agent
from upslope.diagnostics import Look, Seen
from upslope.distributions import Distribution
from upslope.objectives import Clip, Objective, ObjectiveState, Sample, importance_ratio
from upslope.shuffle import shuffle
from upslope.types import Credit, Metrics, Rollout, Values


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

    def has_gone_too_far(self, sample: Sample, valid: Bool[Array, "B"]) -> Bool[Array, ""]:
        """Whether the policy has left the region in which the batch still tells about it."""
        too_far = jnp.bool_(False)
        if self.target_kl is not None:
            too_far |= mean(sample.kl, valid) > self.target_kl
        if self.min_effective_sample_size is not None:
            too_far |= ~(effective_sample_size(importance_ratio(sample), valid) >= self.min_effective_sample_size)
        return too_far

    def optimiser(self) -> optax.GradientTransformation:
        """Adam's direction for a gradient clipped to a global norm; the step size is applied by `descend`."""
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.scale_by_adam(eps=1e-5))


ROOM_FOR_NEW = 16
"""One state in so many may end an episode or a rollout before all successors are evaluated."""


class Learner(NamedTuple):
    """All that an update changes."""

    agent: Agent
    actor_optimiser: Any
    critic_optimiser: Any
    objective: ObjectiveState


class Batch(NamedTuple):
    """B samples, flattened from [T, N]."""

    features: Float[Array, "B D"]
    action: Shaped[Array, "B ..."]
    behaviour_log_prob: Float[Array, "B"]
    weight: Float[Array, "B"]
    target: Float[Array, "B"]
    valid: Bool[Array, "B"]
    old_policy: Distribution


class Descent(NamedTuple):
    """The state of a descent."""

    parameters: Any
    optimiser: Any
    stopped: Bool[Array, ""]


def begin_learning(update: Update, agent: Agent) -> Learner:
    """A learner that has not moved yet."""
    optimiser = update.optimiser()
    actor: Any = agent.actor
    critic: Any = agent.critic
    return Learner(agent, optimiser.init(actor), optimiser.init(critic), update.objective.init())


def evaluate(agent: Agent, rollout: Rollout) -> Values:
    """V(s_t) and V(s_{t+1}); the latter from the true successor, also at an episode's end.

    Where s_{t+1} is the next row's observation, its value is that row's, and it is not computed again.
    """
    value = agent.value(rollout.observation)
    observation, successor = rollout.observation, rollout.next_observation
    differs = jnp.any(successor[:-1] != observation[1:], axis=tuple(range(2, observation.ndim)))
    is_new = jnp.concatenate([differs, jnp.ones_like(differs, shape=(1, *differs.shape[1:]))]).reshape(-1)
    shifted = jnp.concatenate([value[1:], value[-1:]]).reshape(-1)
    room = max(value.shape[1], value.size // ROOM_FOR_NEW)
    flat = successor.reshape(-1, *successor.shape[2:])

    def few() -> Array:
        (rows,) = jnp.nonzero(is_new, size=room, fill_value=value.size)
        return shifted.at[rows].set(agent.value(flat.at[rows].get(mode="clip")), mode="drop")

    def many() -> Array:
        return jnp.where(is_new, agent.value(flat), shifted)

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
    batch = flatten(agent, rollout, credit)
    if update.normalize_advantage:
        batch = batch._replace(weight=standardise(batch.weight, batch.valid))
    actor_key, critic_key = jax.random.split(key)

    def actor_loss(actor: Actor, batch: Batch) -> tuple[Array, Array]:
        sample, entropy = sample_of(actor, batch)
        loss = update.objective.loss(objective, sample) - update.entropy_coefficient * entropy
        loss = jnp.where(imitate, -sample.log_prob, loss)
        return mean(loss, batch.valid), ~imitate & update.has_gone_too_far(sample, batch.valid)

    def critic_loss(critic: Any, batch: Batch) -> tuple[Array, Array]:
        error = critic(batch.features)[..., 0] - batch.target
        return 0.5 * mean(error**2, batch.valid), jnp.bool_(False)

    actor, metrics = descend(
        update, actor_loss, agent.actor, learner.actor_optimiser, batch, actor_key, learning_rate,
        update.epochs, update.target_kl is not None or update.min_effective_sample_size is not None,
    )  # fmt: skip
    after, entropy = sample_of(actor.parameters, batch)
    kl = mean(after.kl, batch.valid)
    metrics = {f"policy/{name}": value for name, value in metrics.items()}
    metrics |= policy_metrics(update.objective, after, batch.valid) | {"policy/entropy": mean(entropy, batch.valid)}
    metrics["policy/kl"] = kl
    if update.objective.state_name is not None:
        metrics[f"objective/{update.objective.state_name}"] = objective
    critic, before = Descent(agent.critic, learner.critic_optimiser, jnp.bool_(False)), None
    if update.needs_critic:
        critic, critic_metrics = descend(
            update, critic_loss, agent.critic, learner.critic_optimiser, batch, critic_key, learning_rate,
            update.critic_epochs, False,
        )  # fmt: skip
        metrics |= {f"critic/{name}": value for name, value in critic_metrics.items()}
    if look is not None:
        metrics |= look(Seen(agent, actor, critic, before, rollout, credit, batch, after))
    agent = dataclasses.replace(agent, actor=actor.parameters, critic=critic.parameters)
    adapted = jnp.where(imitate, objective, update.objective.adapt(objective, kl))
    moved = Learner(agent, actor.optimiser, critic.optimiser, adapted)
    return moved, metrics


def descend(
    update: Update,
    loss: Callable[[Any, Batch], tuple[Array, Array]],
    parameters: Any,
    optimiser_state: Any,
    batch: Batch,
    key: PRNGKeyArray,
    learning_rate: Float[Array, ""],
    epochs: int,
    may_stop: bool,
) -> tuple[Descent, Metrics]:
    """Minimise `loss` over `epochs` passes of shuffled, disjoint minibatches.

    `loss` gives its value and whether to stop; if it `may_stop`, the descent ends for good before the first minibatch
    that says so. Samples left over by an uneven division are others in each epoch.
    """
    optimiser = update.optimiser()
    num_samples = batch.weight.shape[0]
    size = num_samples // update.minibatches

    def move(descent: Descent, indices: Array) -> tuple[Descent, tuple[Array, Array]]:
        part = (
            jax.tree.map(lambda x: jnp.take(x, indices, axis=0, mode="clip"), batch)
            if update.minibatches > 1
            else batch
        )
        (value, stop), gradient = jax.value_and_grad(loss, has_aux=True)(descent.parameters, part)
        direction, state = optimiser.update(gradient, descent.optimiser)
        moved = jax.tree.map(lambda p, d: p - learning_rate * d, descent.parameters, direction)
        after = Descent(moved, state, jnp.bool_(False))
        if may_stop:
            after = jax.lax.cond(stop, lambda: descent._replace(stopped=jnp.bool_(True)), lambda: after)
        return after, (value, optax.tree.norm(gradient))

    def step(descent: Descent, indices: Array) -> tuple[Descent, tuple[Array, Array]]:
        if not may_stop:
            return move(descent, indices)
        skip = (jnp.float32(jnp.nan), jnp.float32(jnp.nan))
        return jax.lax.cond(descent.stopped, lambda: (descent, skip), lambda: move(descent, indices))

    def epoch(descent: Descent, key: PRNGKeyArray) -> tuple[Descent, tuple[Array, Array]]:
        indices = shuffle(key, num_samples)[: size * update.minibatches].reshape(update.minibatches, size)
        return jax.lax.scan(step, descent, indices)

    start = Descent(parameters, optimiser_state, jnp.bool_(False))
    descent, (losses, norms) = jax.lax.scan(epoch, start, jax.random.split(key, epochs))
    return descent, {"loss": jnp.nanmean(losses), "gradient_norm": jnp.nanmean(norms)}


def flatten(agent: Agent, rollout: Rollout, credit: Credit) -> Batch:
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
        old_policy=agent.actor(features),
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
    return mean(ratio, valid) ** 2 / mean(ratio**2, valid)


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
