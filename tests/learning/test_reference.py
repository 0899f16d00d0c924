"""One update towards a reference policy matches a gradient worked by hand, and a reference keeps its memory across
rollouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from helpers import actor_of, fresh_agent, quick_jit, rollout_of, softmax_agent
from scipy.special import softmax

from upslope.core.types import Credit
from upslope.learning.optimisers import Optimiser
from upslope.learning.reference import Reference, advanced, reference_policy
from upslope.learning.update import Pace, begin_learning, improve, plain_update
from upslope.models.model import start_memory

LOGITS, TARGET = np.array([[0.5, -0.3, 0.1]]), np.array([[-0.2, 0.4, 0.9]])
ACTIONS = np.array([0, 2, 2, 1])


@pytest.mark.parametrize("estimator", ["exact", "k2", "k3"])
def test_an_update_descends_the_divergence(estimator):
    agent, target = softmax_agent(LOGITS), softmax_agent(TARGET)
    update = plain_update(
        needs_critic=False, optimiser=Optimiser("sgd", 1e6), reference_kl=0.5, reference_estimator=estimator
    )
    rollout = rollout_of(np.zeros((4, 1)))._replace(
        observation=jnp.zeros((4, 1), jnp.int32),
        next_observation=jnp.zeros((4, 1), jnp.int32),
        action=jnp.asarray(ACTIONS[:, None]),
    )
    nothing = Credit(jnp.zeros((4, 1)), jnp.zeros((4, 1)))

    @quick_jit
    def moved(agent, target):
        pace = Pace(jnp.float32(0.1), 0.0, update.objective, jnp.bool_(False))
        reference = Reference(target, start_memory(target.model, 1))
        known = None, None, reference
        return improve(update, begin_learning(update, agent), rollout, nothing, jax.random.key(0), pace, *known)

    learner, metrics = moved(agent, target)
    policy, other = softmax(LOGITS[0]), softmax(TARGET[0])
    x = np.log(other) - np.log(policy)
    # d log π(a) / d logits = onehot(a) − π.
    score = np.eye(3) - policy
    slope = {
        "exact": -(policy * x) @ score,
        "k2": np.mean([-x[a] * score[a] for a in ACTIONS], axis=0),
        "k3": np.mean([(1 - np.exp(x[a])) * score[a] for a in ACTIONS], axis=0),
    }[estimator]
    logits = actor_of(learner.agent).network.weights[0]
    np.testing.assert_allclose(logits[0], LOGITS[0] - 0.1 * 0.5 * slope, atol=1e-6)
    after = softmax(np.asarray(logits[0], np.float64) + np.asarray(actor_of(learner.agent).network.biases[0]))
    assert float(metrics["policy/reference_kl"]) == pytest.approx(after @ np.log(after / other), abs=1e-6)


def test_a_reference_with_memory_remembers_from_rollout_to_rollout():
    agent = fresh_agent(jax.random.key(1), Box(-1, 1, (2,)), Discrete(3), memory="gru", memory_size=4)
    seen = np.random.default_rng(0).normal(size=(6, 2, 2)).astype(np.float32)
    ended = np.zeros((6, 2), bool)
    ended[1, 0] = ended[2, 1] = True
    whole = rollout_of(np.zeros((6, 2)), ended)._replace(
        observation=jnp.asarray(seen), next_observation=jnp.asarray(seen)
    )
    first, second = (jax.tree.map(lambda x, rows=rows: x[rows], whole) for rows in (slice(3), slice(3, 6)))
    nothing = Credit(jnp.zeros((6, 2)), jnp.zeros((6, 2)))
    begin = Reference(agent, start_memory(agent.model, 2))
    policy = quick_jit(partial(reference_policy, length=1, vmapped=False))
    together = policy(begin, whole, nothing).logits.reshape(6, 2, 3)
    later = quick_jit(advanced)(begin, first)
    half = jax.tree.map(lambda x: x[:3], nothing)
    apart = [
        policy(reference, part, half).logits.reshape(3, 2, 3) for reference, part in ((begin, first), (later, second))
    ]
    np.testing.assert_allclose(np.concatenate(apart), together, atol=1e-6)
    assert np.abs(np.asarray(policy(begin, second, half).logits.reshape(3, 2, 3) - together[3:])).max() > 1e-4
