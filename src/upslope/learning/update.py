"""The move step: improve an agent with a rollout and its credit.

Policy and critic have separate optimisers, so there is no coefficient between their losses, and stopping one descent
early does not affect the other. With a shared trunk, there is one group. Its loss is the policy's plus c times the
critic's.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from upslope.core.messages import counted
from upslope.core.objectives import (
    NaturalGradient,
    Objective,
    ObjectiveState,
    PolicyGradient,
    Sample,
    importance_ratio,
)
from upslope.core.types import Credit, Metrics, Rollout
from upslope.errors import UpslopeError
from upslope.learning.batch import Batch, batch_of, inputs_of, outputs_of
from upslope.learning.blocks import in_blocks
from upslope.learning.descent import Descent, Plan, descend, start_optimiser
from upslope.learning.health import HealthProbe, UpdateData
from upslope.learning.natural import descend_naturally
from upslope.learning.optimisers import Optimiser
from upslope.learning.reference import Reference, reference_divergence, reference_policy
from upslope.learning.two_devices import on_two_devices
from upslope.models.agent import Agent
from upslope.models.model import (
    POLICY,
    SHARED,
    VALUE,
    Memory,
    group_places,
    has_memory,
    parameters_of,
    start_memory,
    with_parameters,
)

NEEDS_OWN_PARAMETERS = (
    "{} measures steps by the policy's own Fisher matrix, so the policy cannot share parameters with the "
    "critic. Omit --shared-trunk (in a custom model, define the groups `policy` and `value`), or use "
    "--objective clip."
)


@dataclass(frozen=True)
class Update:
    """Settings for an update. Fields without a description are hyperparameters, documented in `Config`."""

    objective: Objective
    needs_critic: bool
    epochs: int
    critic_epochs: int
    minibatches: int
    optimiser: Optimiser
    target_kl: float | None
    min_effective_sample_size: float | None
    normalize_advantage: bool
    value_coefficient: float = 0.5
    value_clip: float | None = None
    rpo_alpha: float = 0.0
    sequence_length: int | None = None
    """L, the number of steps in a sequence if the model has memory; None means the whole rollout."""
    apart: bool = False
    """Whether policy and critic descend on separate devices along the mesh axis `NETWORKS`. The results are the
    same."""
    vmapped: bool = False
    """Whether this is one of several seeds along the axis `VMAPPED_SEEDS`."""
    reference_kl: float | None = None
    """β, the coefficient of the divergence from a reference policy; None if there is no such policy."""
    reference_estimator: str = "exact"

    def may_stop(self) -> bool:
        """Whether an early stop is configured, so that `has_gone_too_far` can return true."""
        return self.target_kl is not None or self.min_effective_sample_size is not None

    def has_gone_too_far(self, distance: "Distance") -> Bool[Array, ""]:
        """Whether the policy has moved too far from the old one for the batch to remain informative."""
        too_far = jnp.bool_(False)
        if self.target_kl is not None:
            too_far |= distance.kl > self.target_kl
        if self.min_effective_sample_size is not None:
            share = effective_share(distance.ratio, distance.squared_ratio)
            too_far |= ~(share >= self.min_effective_sample_size)
        return too_far

    def stretch(self, steps: int, columns: int) -> int:
        """L for a rollout [T, N]. The default is T, or less if there would otherwise be fewer sequences than
        minibatches."""
        return self.sequence_length or max(1, steps // math.ceil(self.minibatches / columns))

    def check_minibatches(
        self, steps: int, columns: int, *, has_memory: bool, longer: str = "raise --rollout-steps"
    ) -> None:
        """Raise an error if there are more minibatches than units in a rollout [T, N].

        A unit is a step, or a sequence of L steps if there is memory. `longer` is the advice on how to make the rollout
        longer.

        Raises:
            UpslopeError: a minibatch would be empty.
        """
        length = min(self.stretch(steps, columns), steps) if has_memory else 1
        units = columns * math.ceil(steps / length)
        if self.minibatches > units:
            kind = "samples of" if length == 1 else f"sequences of --sequence-length {length} in"
            remedy = longer if length == 1 else "the length of a sequence"
            raise UpslopeError(
                f"--minibatches {self.minibatches} is more than the {units} {kind} an iteration "
                f"({counted(columns, 'environment')} × {counted(steps, 'step')}). Lower it, or {remedy}."
            )

    def plan(self, epochs: int) -> Plan:
        """The descent settings of one group."""
        return Plan(self.optimiser, epochs, self.minibatches, in_halves=not self.vmapped, together=self.vmapped)


def plain_update(**changes: Any) -> Update:
    """A plain update with these changes: one epoch, one minibatch, and no clipping in practice."""
    fields: dict[str, Any] = {
        "objective": PolicyGradient(),
        "needs_critic": True,
        "epochs": 1,
        "critic_epochs": 1,
        "minibatches": 1,
        "optimiser": Optimiser(max_grad_norm=1e6),
        "target_kl": None,
        "min_effective_sample_size": None,
        "normalize_advantage": False,
    }
    return Update(**(fields | changes))


class Pace(NamedTuple):
    """This iteration's values of the settings that change over the budget."""

    learning_rate: Float[Array, ""]
    entropy_coefficient: Any
    objective: Objective
    """The objective, with its current ε."""
    imitate: Bool[Array, ""]
    """Whether the policy imitates the recorded actions by maximum likelihood instead of using the objective."""


class Learner(NamedTuple):
    """All state that an update changes."""

    agent: Agent
    optimisers: dict[str, Any]
    """The state of each group's optimiser."""
    objective: ObjectiveState


class Distance(NamedTuple):
    """Divergence of the policy from the batch's old and behaviour policies."""

    kl: Float[Array, ""]
    ratio: Float[Array, ""]
    squared_ratio: Float[Array, ""]


def begin_learning(update: Update, agent: Agent) -> Learner:
    """A learner before its first update.

    Raises:
        UpslopeError: the objective needs a policy with parameters of its own, and the model has a single group.
    """
    groups = group_places(agent.model)
    if SHARED in groups and isinstance(update.objective, NaturalGradient):
        raise UpslopeError(NEEDS_OWN_PARAMETERS.format(type(update.objective).__name__))
    optimisers = {name: start_optimiser(update.optimiser, parameters_of(agent.model, name)) for name in groups}
    return Learner(agent, optimisers, update.objective.init())


def improve(
    update: Update,
    learner: Learner,
    rollout: Rollout,
    credit: Credit,
    key: PRNGKeyArray,
    pace: Pace,
    memory: Memory | None = None,
    probe: HealthProbe | None = None,
    reference: Reference | None = None,
) -> tuple[Learner, Metrics]:
    """Update every group over epochs of shuffled minibatches, then adapt the objective's state.

    `memory` is the model's memory at the start of the rollout, by default that of new episodes. A `probe` adds the
    health metrics.
    """
    agent, objective = learner.agent, learner.objective
    memory = memory or start_memory(agent.model, rollout.reward.shape[1])
    update.check_minibatches(*rollout.reward.shape, has_memory=has_memory(agent.model))
    length = update.stretch(*rollout.reward.shape)
    batch = batch_of(agent, rollout, credit, memory, length, update.vmapped)
    if reference is not None:
        batch = batch._replace(reference=reference_policy(reference, rollout, credit, length, update.vmapped))
    if update.normalize_advantage:
        batch = batch._replace(weight=standardise(batch.weight, batch.valid))
    if update.value_clip is not None and update.needs_critic:
        old_value = in_blocks(lambda rows: outputs_of(agent.model, *rows).value, inputs_of(batch), update.vmapped)
        batch = batch._replace(old_value=old_value)
    values = None if probe is None else probe.values(agent, batch, rollout, memory)
    descents, found = descend_groups(update, learner, batch, key, pace)
    model = with_parameters(agent.model, {name: descent.parameters for name, descent in descents.items()})
    after, entropy = in_blocks(partial(sample_of, model), batch, update.vmapped)
    kl = mean(after.kl, batch.valid)
    metrics = {f"policy/{name}": value for name, value in found[0].items()}
    metrics |= policy_metrics(pace.objective, after, batch.valid) | {"policy/entropy": mean(entropy, batch.valid)}
    metrics["policy/kl"] = kl
    if reference is not None:
        away = in_blocks(partial(distance_from_reference, model), batch, update.vmapped)
        metrics["policy/reference_kl"] = mean(away, batch.valid)
    if update.objective.state_name is not None:
        metrics[f"objective/{update.objective.state_name}"] = objective
    metrics |= {f"critic/{name}": value for name, value in found[1].items()}
    if probe is not None and values is not None:
        metrics |= probe(UpdateData(values, agent.reward_scale(), model, descents, rollout, credit, batch, after))
    adapted = jnp.where(pace.imitate, objective, update.objective.adapt(objective, kl))
    optimisers = {name: descent.optimiser for name, descent in descents.items()}
    return Learner(dataclasses.replace(agent, model=model), optimisers, adapted), metrics


def descend_groups(
    update: Update, learner: Learner, batch: Batch, key: PRNGKeyArray, pace: Pace
) -> tuple[dict[str, Descent], tuple[Metrics, Metrics]]:
    """Minimise the loss of each parameter group. Also return the metrics of the policy and of the critic."""
    model, objective = learner.agent.model, learner.objective
    policy_key, value_key = jax.random.split(key)
    # A number that differs between the trials of a sweep is not a plain float, and may be above 0 in some of them.
    has_shifts = type(update.rpo_alpha) is not float or update.rpo_alpha > 0

    def policy_losses(model: Any, batch: Batch) -> tuple[Array, Distance, Array]:
        outputs = outputs_of(model, *inputs_of(batch))
        sample, entropy = sample_from(outputs.policy, batch)
        loss = losses_of(pace.objective, objective, sample) - pace.entropy_coefficient * entropy
        if batch.reference is not None and update.reference_kl is not None:
            loss += update.reference_kl * reference_divergence(outputs.policy, batch, update.reference_estimator)
        ratio = importance_ratio(sample if batch.shift is None else sample_from(outputs.policy, unshifted(batch))[0])
        distance = Distance(sample.kl, ratio, ratio**2)
        return jnp.where(pace.imitate, -sample.log_prob, loss), distance, outputs.value

    def policy_loss(parameters: Any, batch: Batch) -> tuple[Array, Distance]:
        loss, distance, _ = policy_losses(with_parameters(model, {POLICY: parameters}), batch)
        return loss, distance

    def value_loss(parameters: Any, batch: Batch) -> tuple[Array, None]:
        moved = with_parameters(model, {VALUE: parameters})
        value = outputs_of(moved, *inputs_of(batch)).value
        return critic_loss(update.value_clip, value, batch), None

    def shared_loss(parameters: Any, batch: Batch) -> tuple[Array, Distance]:
        loss, distance, value = policy_losses(with_parameters(model, {SHARED: parameters}), batch)
        coefficient = update.value_coefficient if update.needs_critic else 0.0
        return loss + coefficient * critic_loss(update.value_clip, value, batch), distance

    def is_too_far(distance: Distance) -> Bool[Array, ""]:
        return ~pace.imitate & update.has_gone_too_far(distance)

    def descend_group(name: str, loss: Any, epochs: int, key: PRNGKeyArray, may_stop: bool) -> tuple[Descent, Metrics]:
        start = Descent(parameters_of(model, name), learner.optimisers[name], jnp.bool_(False))
        must_stop = is_too_far if may_stop and update.may_stop() else None
        renew = partial(with_shifts, learner.agent.head, update.rpo_alpha) if name != VALUE and has_shifts else None
        return descend(update.plan(epochs), loss, start, batch, key, pace.learning_rate, must_stop, renew)

    if SHARED in learner.optimisers:
        descent, metrics = descend_group(SHARED, shared_loss, update.epochs, policy_key, may_stop=True)
        return {SHARED: descent}, (metrics, {})

    def value_descent() -> tuple[Descent, Metrics]:
        if not update.needs_critic:
            return Descent(parameters_of(model, VALUE), learner.optimisers[VALUE], jnp.bool_(False)), {}
        return descend_group(VALUE, value_loss, update.critic_epochs, value_key, may_stop=False)

    def policy_descent() -> tuple[Descent, Metrics]:
        if isinstance(pace.objective, NaturalGradient):
            start = Descent(parameters_of(model, POLICY), learner.optimisers[POLICY], jnp.bool_(False))
            return descend_naturally(pace.objective, policy_loss, start, batch, vmapped=update.vmapped)
        return descend_group(POLICY, policy_loss, update.epochs, policy_key, may_stop=True)

    both: Callable[..., Any] = on_two_devices if update.apart else lambda first, second: (first(), second())
    (actor, actor_metrics), (critic, critic_metrics) = both(policy_descent, value_descent)
    return {POLICY: actor, VALUE: critic}, (actor_metrics, critic_metrics)


def losses_of(objective: Objective, state: ObjectiveState, sample: Sample) -> Float[Array, "..."]:
    """The objective's loss of each sample. The objective receives flat arrays, even if units are sequences of steps."""
    return objective.loss(state, jax.tree.map(jnp.ravel, sample)).reshape(sample.weight.shape)


def with_shifts(head: Any, alpha: float, batch: Batch, key: PRNGKeyArray) -> Batch:
    """The batch with a random shift z ~ U(−α, α) added to the mean of each action, in units of `head.mean_unit` (Rahman
    & Xue 2022)."""
    drawn = jax.random.uniform(key, batch.action.shape, minval=-1.0, maxval=1.0)
    return batch._replace(shift=drawn * alpha * jnp.asarray(head.mean_unit))


def critic_loss(clip: float | None, value: Float[Array, "..."], batch: Batch) -> Float[Array, "..."]:
    """½ (V − target)² or, with a clip ε, the larger of that and ½ (V_old + clip(V − V_old, ±ε) − target)².

    With the clip, moving V by more than ε brings no gain (code of Schulman et al. 2017; Huang et al. 2022, detail
    9)."""
    loss = squared_error(value, batch.target)
    if clip is None or batch.old_value is None:
        return loss
    near = batch.old_value + jnp.clip(value - batch.old_value, -clip, clip)
    return jnp.maximum(loss, squared_error(near, batch.target))


def squared_error(value: Float[Array, "..."], target: Float[Array, "..."]) -> Float[Array, "..."]:
    """½ (V − target)²."""
    return 0.5 * (value - target) ** 2


def sample_of(model: Any, batch: Batch) -> tuple[Sample, Float[Array, "B ..."]]:
    """The objective's inputs for the batch under this model, and the entropy."""
    return sample_from(outputs_of(model, *inputs_of(batch)).policy, batch)


def distance_from_reference(model: Any, batch: Batch) -> Float[Array, "B ..."]:
    """The exact KL(π_θ‖π_ref)."""
    return reference_divergence(outputs_of(model, *inputs_of(batch)).policy, batch, "exact")


def unshifted(batch: Batch) -> Batch:
    """The batch without the shifts of the mean."""
    return batch._replace(shift=None)


def sample_from(policy: Any, batch: Batch) -> tuple[Sample, Float[Array, "B ..."]]:
    """The objective's inputs for the batch under this policy, and the entropy."""
    # Only the ratio uses the shift. The KL and the entropy are those of the policy that will act.
    log_prob = (policy if batch.shift is None else policy.shifted(batch.shift)).log_prob(batch.action)
    sample = Sample(log_prob, batch.behaviour_log_prob, batch.weight, batch.old_policy.kl(policy))
    return sample, policy.entropy()


def policy_metrics(objective: Objective, sample: Sample, valid: Bool[Array, "B ..."]) -> Metrics:
    """The fraction of samples whose ratio ρ = π_θ/μ is outside [1−ε, 1+ε], and the effective sample size."""
    ratio = importance_ratio(sample)
    return {
        "policy/clip_fraction": mean(objective.is_outside(ratio), valid),
        "policy/effective_sample_size": effective_sample_size(ratio, valid),
    }


def effective_sample_size(ratio: Float[Array, "B ..."], valid: Bool[Array, "B ..."]) -> Float[Array, ""]:
    """ESS/n = (Σρ)² / (n Σρ²): 1 if the policies agree, falling towards 0 as they diverge (Kong 1992)."""
    return effective_share(mean(ratio, valid), mean(ratio**2, valid))


def effective_share(ratio: Float[Array, ""], squared_ratio: Float[Array, ""]) -> Float[Array, ""]:
    """ESS/n, computed from the means of ρ and ρ²."""
    return ratio**2 / squared_ratio


def mean(x: Shaped[Array, "..."], valid: Bool[Array, "..."]) -> Float[Array, ""]:
    """The mean over the valid samples."""
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def standardise(x: Float[Array, "..."], valid: Bool[Array, "..."]) -> Float[Array, "..."]:
    """(x − mean)/std over the valid samples. If fewer than two samples are valid, x is returned unchanged, because
    centring would give 0."""
    centred = x - mean(x, valid)
    standardised = centred / (jnp.sqrt(mean(centred**2, valid)) + 1e-8)
    return jnp.where(valid, jnp.where(jnp.sum(valid) > 1, standardised, x), 0.0)


def explained_variance(value: Float[Array, "..."], target: Float[Array, "..."], valid: Bool[Array, "..."]) -> Array:
    """1 − Var(target − V)/Var(target): 1 for a perfect critic, 0 for a constant one, negative for a worse one."""
    residual = target - value
    variance = mean((target - mean(target, valid)) ** 2, valid)
    return 1 - mean((residual - mean(residual, valid)) ** 2, valid) / (variance + 1e-12)
