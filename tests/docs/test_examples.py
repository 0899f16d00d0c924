"""The examples: scripts that do not use upslope have the same gradients as upslope, and all examples learn.

The scripts share no code with the library. Both are applied to real CartPole data: the scripts' losses are
differentiated directly, and the library's gradients are read from Adam's first moment after one step of `improve`, the
function that training calls.
"""

import dataclasses
import importlib.util
import itertools
import json
import sys
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from helpers import actor_of, critic_of, fresh_agent, improve_once, with_networks
from jax.flatten_util import ravel_pytree

import upslope
from upslope.core.estimators import GAE, RewardToGo, TotalReturn
from upslope.core.objectives import Clip, PolicyGradient
from upslope.core.types import Rollout
from upslope.learning.evaluation import evaluate
from upslope.learning.update import begin_learning, plain_update
from upslope.models.networks import Perceptron

EXAMPLES = Path(__file__).parents[2] / "examples"
RANDOM_RETURN = 22.0
"""The mean return of a uniformly random policy in CartPole-v1."""
ADAM_FIRST_MOMENT = 0.1
"""After its first step, Adam's first moment is (1 − b₁) times the gradient."""
TOLERANCE = 1e-5


def load_example(name):
    """Import examples/NAME.py from its path."""
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and `module:Name` look it up there
    specification.loader.exec_module(module)
    return module


REINFORCE, PPO, MY = (load_example(name) for name in ("reinforce", "ppo_clip", "my_estimator"))


def perceptron(layers):
    """Return the library's network with an example's layers."""
    weights, biases = zip(*layers, strict=True)
    return Perceptron(tuple(weights), tuple(biases), "tanh")


def agent_of(actor, critic=None):
    """Return the library's agent for CartPole with these layers."""
    agent = fresh_agent(jax.random.key(0), Box(-1, 1, (4,)), Discrete(2))
    network = dataclasses.replace(actor_of(agent), network=perceptron(actor))
    return with_networks(agent, network, None if critic is None else perceptron(critic))


def gradients(update, agent, rollout, credit, bonus=0.0):
    """Return the library's gradients of actor and critic, and its metrics, from one call to `improve`."""
    learner, key = begin_learning(update, agent), jax.random.key(0)
    moved, metrics = improve_once(update, learner, rollout, credit, key, 1e-3, bonus)
    (_, actor), (_, critic) = (moved.optimisers[name] for name in ("policy", "value"))
    seen = ((actor_of(agent), actor), (critic_of(agent), critic))
    return [ravel_pytree(network)[1](state.mu / ADAM_FIRST_MOMENT) for network, state in seen], metrics


def assert_same(layers, network):
    """Check that the gradients of each layer agree relative to their largest entry, and that none of them is zero."""
    for (weight, bias), mine, my_bias in zip(layers, network.weights, network.biases, strict=True):
        for expected, found in ((weight, mine), (bias, my_bias)):
            scale = float(jnp.abs(expected).max())
            assert scale > 0
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def disturbed(layers, size, seed=1):
    """Return a copy of the layers with small random changes."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + size * generator.normal(size=x.shape).astype(np.float32), layers)


@pytest.mark.parametrize(("reward_to_go", "estimator"), [(False, TotalReturn()), (True, RewardToGo())])
def test_reinforce_has_the_gradient_of_the_library(reward_to_go, estimator):
    layers = REINFORCE.initialise(jax.random.key(3), (4, 32, 32, 2))
    layers[-1] = disturbed(layers[-1], 0.3)  # with equal logits, different gradients could look alike
    worlds = [gymnasium.make("CartPole-v1") for _ in range(4)]
    for n, world in enumerate(worlds):
        world.reset(seed=n)
    observation, action, reward, valid = REINFORCE.collect(worlds, layers, jax.random.key(4))
    is_last = valid & ~np.concatenate([valid[1:], np.zeros_like(valid[:1])])
    assert 4 == is_last.sum() < valid.sum()

    batch = REINFORCE.Batch(observation, action, valid, REINFORCE.weigh(reward, 0.97, reward_to_go))
    expected = jax.jit(jax.grad(REINFORCE.loss))(layers, batch)

    agent = agent_of(layers)
    log_prob = agent.policy(jnp.asarray(observation)).log_prob(jnp.asarray(action))
    np.testing.assert_allclose(REINFORCE.log_probability(layers, observation, action), log_prob, atol=1e-6)
    never, successor = np.zeros_like(valid), np.zeros_like(observation)
    rollout = as_arrays(Rollout(observation, action, reward, is_last, never, successor, log_prob, valid))
    credit = estimator(rollout, evaluate(agent, rollout), 0.97)
    np.testing.assert_allclose(credit.weight, batch.weight * valid, rtol=TOLERANCE)
    (actor, _), metrics = gradients(plain_update(objective=PolicyGradient()), agent, rollout, credit)
    assert_same(expected, actor.network)
    np.testing.assert_allclose(metrics["policy/loss"], REINFORCE.loss(layers, batch), rtol=TOLERANCE)


def test_ppo_has_the_gradient_of_the_library(monkeypatch):
    """The policy differs from the behaviour policy, so some ratios are clipped. Both kinds of episode end occur."""
    monkeypatch.setattr(PPO, "NUM_STEPS", 64)
    sizes = (4, 32, 32)
    behaviour = {
        "actor": PPO.initialise(jax.random.key(5), (*sizes, 2), 1.0),
        "critic": PPO.initialise(jax.random.key(6), (*sizes, 1), 1.0),
    }
    make = lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1", max_episode_steps=20))  # noqa: E731
    worlds = [make() for _ in range(4)]
    now = np.stack([world.reset(seed=n)[0] for n, world in enumerate(worlds)])
    _, facts, _ = PPO.collect(worlds, now, behaviour, jax.random.key(7))
    observation, action, log_mu, reward, terminated, truncated, successor = facts
    assert terminated.any() and truncated.any()
    # After an episode's last step, the true successor is not in the next row, which starts another episode.
    ended = (terminated | truncated)[:-1]
    assert (successor[:-1] == observation[1:]).all(axis=-1)[~ended].all()
    assert (successor[:-1] != observation[1:]).any(axis=-1)[ended].all()

    parameters = {name: disturbed(layers, 0.1) for name, layers in behaviour.items()}
    ratio = jnp.exp(PPO.log_probability(parameters, observation, action)[0] - log_mu)
    assert 0.1 < jnp.mean(jnp.abs(ratio - 1) > PPO.EPSILON) < 0.9
    batch = PPO.weigh(parameters, *facts)
    expected = jax.jit(jax.grad(PPO.loss))(parameters, batch)

    agent = agent_of(parameters["actor"], parameters["critic"])
    valid = np.ones_like(terminated)
    rollout = as_arrays(Rollout(observation, action, reward, terminated, truncated, successor, log_mu, valid))
    values = evaluate(agent, rollout)
    credit = GAE(PPO.LAMBDA)(rollout, values, PPO.GAMMA)
    advantage = PPO.generalised_advantage(reward, terminated, truncated, *map(np.asarray, values[:2]))
    np.testing.assert_allclose(credit.weight, advantage, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(credit.target.ravel(), batch[4], rtol=TOLERANCE, atol=TOLERANCE)
    update = plain_update(objective=Clip(PPO.EPSILON), normalize_advantage=True)
    (actor, critic), _ = gradients(update, agent, rollout, credit, PPO.ENTROPY_COEFFICIENT)
    assert_same(expected["actor"], actor.network)
    assert_same(expected["critic"], critic)


def as_arrays(rollout):
    """Convert a NumPy rollout to JAX arrays."""
    return jax.tree.map(jnp.asarray, rollout)


def test_ppo_bootstraps_at_truncation_only():
    """Check advantages by hand for γ = 0.99, λ = 0.95, r = 1, V(s_t) = 2, V(s_{t+1}) = 10; step 1 may be the end."""
    one, no = np.ones((2, 1), np.float32), np.zeros((2, 1), bool)
    first = np.array([[True], [False]])
    going_on = 1 + 0.99 * 10 - 2
    cases = ((first, no, 1 - 2), (no, first, going_on), (no, no, going_on + 0.99 * 0.95 * going_on))
    for terminated, truncated, expected in cases:
        advantage = PPO.generalised_advantage(one, terminated, truncated, 2 * one, 10 * one)
        np.testing.assert_allclose(advantage[:, 0], [expected, going_on], rtol=1e-6)


@pytest.mark.parametrize(
    ("train", "options"),
    [(REINFORCE.train, {}), (REINFORCE.train, {"reward_to_go": True}), (PPO.train, {})],
    ids=["reinforce", "reward_to_go", "ppo_clip"],
)
def test_scripts_learn(train, options):
    returns = np.asarray(train(steps=20_480, seed=0, **options))
    assert returns[0] < 2 * RANDOM_RETURN
    assert np.nanmean(returns[-5:]) > 2.5 * RANDOM_RETURN


@pytest.mark.parametrize("name", ["reinforce", "ppo_clip"])
def test_scripts_are_short_and_stand_alone(name):
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert "upslope" not in text


def test_my_estimator_is_unbiased():
    """With one step, two actions and three columns, the gradient averaged over all outcomes equals the exact one."""
    reward_of = np.asarray([1.0, 5.0])
    probability = np.asarray([0.3, 0.7])
    score = np.eye(2) - probability  # row a is ∇ log π(a) with respect to the logits
    total = np.zeros(2)
    for actions in itertools.product(range(2), repeat=3):
        chosen = list(actions)
        no = jnp.zeros((1, 3), bool)
        nothing = jnp.zeros((1, 3))
        rollout = Rollout(
            nothing, nothing, jnp.asarray(reward_of[None, chosen], jnp.float32), ~no, no, nothing, nothing, ~no
        )
        weight = np.asarray(MY.LeaveOneOut()(rollout, upslope.Values(nothing, nothing), 1.0).weight)
        total += probability[chosen].prod() * (weight[0, :, None] * score[chosen]).mean(axis=0)
    # ∇E[R] = Σ_a π(a) R(a) ∇ log π(a)
    np.testing.assert_allclose(total, (probability * reward_of) @ score, rtol=1e-6)


def test_my_estimator_trains(tmp_path):
    run = upslope.train(
        "jax:CartPole-v1", "reinforce", estimator=MY.LeaveOneOut(), steps=20_000, folder=tmp_path, quiet=True
    )
    assert run.config.estimator == "my_estimator:LeaveOneOut"
    assert run.returns[0] > 2 * RANDOM_RETURN  # this mean includes many episodes from early training
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert all(row["policy/loss"] is not None for row in rows)
