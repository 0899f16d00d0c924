"""A fixed reference policy. The learner is penalised for deviating from it."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from upslope.core.distributions import Distribution
from upslope.core.estimators import ends
from upslope.core.objectives import kl_estimate
from upslope.core.types import Credit, Rollout
from upslope.learning.batch import Batch, batch_of, beginnings
from upslope.models.agent import Agent
from upslope.models.model import Memory, has_memory, unroll


class Reference(NamedTuple):
    """The agent whose policy π_ref is the reference, and its memory in each column at the start of the next rollout."""

    agent: Agent
    memory: Memory


def reference_policy(
    reference: Reference, rollout: Rollout, credit: Credit, length: int | None, vmapped: bool
) -> Distribution:
    """π_ref(·|s) in each unit of the batch."""
    return batch_of(reference.agent, rollout, credit, reference.memory, length, vmapped).old_policy


def reference_divergence(policy: Distribution, batch: Batch, estimator: str) -> Float[Array, "B ..."]:
    """The estimate of KL(π_θ(·|s) ‖ π_ref(·|s)) for each sample, which is penalised in the learner's loss."""
    assert batch.reference is not None
    if estimator == "exact":
        return policy.kl(batch.reference)
    return kl_estimate(estimator, policy.log_prob(batch.action), batch.reference.log_prob(batch.action))


def advanced(reference: Reference, rollout: Rollout) -> Reference:
    """The reference after a rollout, with its memory at the start of the next one."""
    if not has_memory(reference.agent.model):
        return reference
    agent, memory = reference
    features = agent.features(rollout.observation)
    carries = unroll(agent.model, features, memory.carry, beginnings(rollout, memory))[1]
    return Reference(agent, Memory(jax.tree.map(lambda x: x[-1], carries), ends(rollout)[-1]))
