"""Do the estimators follow the true gradient? The tests use real rollouts in finite worlds with a known ∇J.

There are two oracles. `Tabular.policy_gradient` is ∇J. `predicted` is the mean that an estimator must have, biased or
not, computed by backward induction from the world's arrays alone. The two agree up to rounding where theory says that
the estimator is unbiased, and differ where it says that it is biased. In both cases, the mean over many episodes must
be within 4 standard errors of the prediction. The tests also assert their own power, by bounding the standard error as
a fraction of the gradient's norm.
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import actor_of, rollout_of, softmax_agent, values_of, with_logits
from scipy.special import softmax

from upslope.core.estimators import GAE, Baseline, NStep, RewardToGo, TotalReturn
from upslope.core.objectives import PolicyGradient, Sample
from upslope.environments.tabular import delayed_key, gridworld, short_corridor
from upslope.learning.collect import collect_episodes
from upslope.learning.evaluation import evaluate

NUM_EPISODES = 20_000
# The corridor's states have different observations here, so that a critic can be exact.
CORRIDOR = dataclasses.replace(short_corridor(), observation_of=np.arange(4))
# name: (world, time limit, scale of the random logits). Episodes end long before a limit of 120.
WORLDS = {
    "corridor": (CORRIDOR, 120, 0.3),
    "corridor, seen as one state": (short_corridor(), 120, 0.3),
    "corridor, cut at 6 steps": (CORRIDOR, 6, 0.3),
    "gridworld": (gridworld(2, 3, step_cost=0.2, slip=0.4), 120, 0.5),
    "gridworld, cut at 5 steps": (gridworld(2, 3, step_cost=0.2, slip=0.4), 5, 0.5),
    "key": (delayed_key(4), 4, 0.5),
}


def table_of(name):
    """Return the policy used in a world, as logits and as probabilities [O, A]."""
    world, _, scale = WORLDS[name]
    shape = (int(world.observation_space.n), int(world.action_space.n))
    logits = scale * np.random.default_rng(0).normal(size=shape)
    return logits, softmax(logits, axis=-1)


def exact_values(name, gamma=1.0):
    """Return v_π for each observation, for worlds in which no two states look alike."""
    return WORLDS[name][0].state_values(table_of(name)[1], gamma)


def wrong_values(name):
    """Return an uninformed critic: random values as large as the true ones, even at the terminal state."""
    world = WORLDS[name][0]
    scale = np.abs(world.state_values(table_of(name)[1], 1.0)).max()
    return 0.5 * scale * np.random.default_rng(1).normal(size=int(world.observation_space.n))


def predicted(name, value, gamma, lambda_=1.0, num_terms=10**9, bootstraps=True):
    """Compute E[Σ_t ∇log π(a_t|s_t) Ψ_t] for Ψ_t = Σ_{b<n} (γλ)^b δ_{t+b} with V = `value` [O], within the time limit.

    Only the mean of Ψ given (s, a) matters. With k steps left, it is A_1 = δ̄ for one term, and
    A_d = δ̄ + γλ Σ_s' P(s'|s, a) Σ_a' π(a'|s') A_(d−1) for d = min(n, k) terms, over successors that are not terminal.
    """
    world, limit, _ = WORLDS[name]
    probability = table_of(name)[1][world.observation_of]
    live = world.transition * ~world.terminal[:, None, None] * ~world.terminal
    state_value = value[world.observation_of]
    delta = np.sum(world.transition * world.reward, axis=-1) + gamma * live @ state_value - state_value[:, None]
    by_depth = [np.zeros_like(delta)]
    for _ in range(min(num_terms, limit)):
        by_depth.append(delta + gamma * lambda_ * live @ np.sum(probability * by_depth[-1], axis=-1))
    gradient, occupancy = np.zeros_like(table_of(name)[0]), world.start
    for left in range(limit, 0, -1):
        weight = by_depth[min(left, num_terms)]
        centred = weight - np.sum(probability * weight, axis=-1, keepdims=True)
        np.add.at(gradient, world.observation_of, occupancy[:, None] * probability * centred)
        occupancy = np.einsum("s,sa,sat->t", occupancy, probability, live)
    return gradient


@cache
def played(name):
    """Play 20,000 episodes with the table's policy."""
    world, limit, _ = WORLDS[name]
    collect = jax.jit(partial(collect_episodes, world, num_envs=NUM_EPISODES, max_episode_steps=limit))
    return collect(softmax_agent(table_of(name)[0]), jax.random.key(7))[0]


@jax.jit
def ascent_of_episodes(agent, rollout, weight):
    """Compute ∇_logits of −Σ_t loss_t separately for each column, [N, O, A]."""

    def gain(logits, observation, action, behaviour_log_prob, weight, valid):
        log_prob = with_logits(agent, logits).policy(observation).log_prob(action)
        loss = PolicyGradient().loss(PolicyGradient().init(), Sample(log_prob, behaviour_log_prob, weight, 0 * weight))
        return -jnp.sum(jnp.where(valid, loss, 0.0))

    facts = (rollout.observation, rollout.action, rollout.behaviour_log_prob, weight, rollout.valid)
    gradient = jax.vmap(jax.grad(gain), in_axes=(None, 1, 1, 1, 1, 1))
    return gradient(actor_of(agent).network.weights[0], *facts)


def estimate(name, estimator, gamma, value):
    """Estimate the gradient; return its mean over episodes and the standard error, each [O, A]."""
    agent, rollout = softmax_agent(table_of(name)[0], value), played(name)
    weight = estimator(rollout, evaluate(agent, rollout), gamma).weight
    per_episode = np.asarray(ascent_of_episodes(agent, rollout, weight), np.float64)
    return per_episode.mean(axis=0), per_episode.std(axis=0) / np.sqrt(NUM_EPISODES)


def check(name, estimator, gamma, value, expected, power):
    """Assert that the estimated mean is as expected and its standard error is relatively small; return that error."""
    mean, error = estimate(name, estimator, gamma, value)
    # 1e-5 allows for float32 sums of up to 120 terms in components without variance.
    np.testing.assert_array_less(np.abs(mean - expected), 4 * error + 1e-5 * np.abs(expected).max())
    assert np.linalg.norm(error) < power * np.linalg.norm(expected)
    return error


def distance(left, right, error):
    """Return the largest difference between components, in standard errors. It shows what the test could detect."""
    return np.max(np.abs(left - right) / (error + 1e-9))


@pytest.mark.parametrize("estimator", [TotalReturn(), RewardToGo(), Baseline()])
@pytest.mark.parametrize("name", WORLDS)
def test_returns_climb_the_true_gradient_with_any_baseline(name, estimator):
    # γ = 1, and the time limit counts as part of the world for these estimators.
    world, limit, _ = WORLDS[name]
    exact = world.policy_gradient(table_of(name)[0], 1.0, limit)
    check(name, estimator, 1.0, wrong_values(name), exact, power=0.3)


@pytest.mark.parametrize("estimator", [NStep(1), NStep(3), GAE(0.0), GAE(0.5), GAE(1.0)])
@pytest.mark.parametrize("name", ["corridor", "gridworld", "key"])
def test_any_number_of_steps_climbs_the_true_gradient_with_an_exact_critic(name, estimator):
    world, _, _ = WORLDS[name]
    logits, _ = table_of(name)
    check(name, estimator, 1.0, exact_values(name), world.policy_gradient(logits, 1.0), power=0.1)


@pytest.mark.parametrize("estimator", [NStep(1), NStep(3), GAE(0.0), GAE(0.5), GAE(1.0)])
@pytest.mark.parametrize("name", ["corridor, cut at 6 steps", "gridworld, cut at 5 steps"])
def test_a_time_limit_with_an_exact_critic_is_no_end(name, estimator):
    # The limit only stops the recording, not the world: Ψ estimates q − v of the world without a limit, even in the
    # last recorded step.
    world, limit, _ = WORLDS[name]
    logits, _ = table_of(name)
    value = exact_values(name)
    expected = predicted(name, value, 1.0)
    error = check(name, estimator, 1.0, value, expected, power=0.1)
    assert distance(expected, world.policy_gradient(logits, 1.0, limit), error) > 8, "the two must not be confused"


@pytest.mark.parametrize("name", ["corridor", "gridworld", "corridor, cut at 6 steps"])
@pytest.mark.parametrize(
    ("estimator", "lambda_", "num_terms"),
    [(NStep(1), 1.0, 1), (NStep(3), 1.0, 3), (GAE(0.0), 0.0, 1), (GAE(0.5), 0.5, 10**9)],
)
def test_a_wrong_critic_biases_by_as_much_as_theory_says(name, estimator, lambda_, num_terms):
    value = wrong_values(name)
    expected = predicted(name, value, 0.9, lambda_, num_terms)
    error = check(name, estimator, 0.9, value, expected, power=0.1)
    assert distance(expected, predicted(name, exact_values(name, 0.9), 0.9), error) > 8


@pytest.mark.parametrize("name", ["corridor", "gridworld", "key"])
def test_a_wrong_critic_does_no_harm_at_lambda_1(name):
    world, _, _ = WORLDS[name]
    exact = world.policy_gradient(table_of(name)[0], 1.0)
    check(name, GAE(1.0), 1.0, wrong_values(name), exact, power=0.3)


@pytest.mark.parametrize("name", ["corridor", "gridworld"])
def test_with_a_discount_the_total_return_keeps_gamma_to_the_t_and_the_reward_to_go_drops_it(name):
    world, limit, _ = WORLDS[name]
    discounted = world.policy_gradient(table_of(name)[0], 0.8, limit)
    nothing = np.zeros(len(table_of(name)[0]))
    check(name, TotalReturn(), 0.8, nothing, discounted, power=0.3)
    dropped = predicted(name, nothing, 0.8)
    error = check(name, RewardToGo(), 0.8, nothing, dropped, power=0.1)
    undiscounted = world.policy_gradient(table_of(name)[0], 1.0, limit)
    for other in (discounted, undiscounted):
        assert distance(dropped, other, error) > 8, "the reward-to-go climbs neither ∇J"


@pytest.mark.parametrize("name", WORLDS)
def test_the_prediction_is_the_policy_gradient_theorem_where_there_is_no_bias(name):
    # These are two ways to compute the same numbers, without any sampling.
    world, limit, _ = WORLDS[name]
    logits, _ = table_of(name)
    nothing = np.zeros(len(logits))
    np.testing.assert_allclose(predicted(name, nothing, 1.0), world.policy_gradient(logits, 1.0, limit), atol=1e-10)
    if name in ("corridor", "gridworld", "key"):
        # Fewer than one in a hundred gridworld episodes outlasts the limit.
        close_to_endless = partial(np.testing.assert_allclose, desired=world.policy_gradient(logits, 1.0), atol=3e-3)
        close_to_endless(predicted(name, wrong_values(name), 1.0))
        for lambda_ in (0.0, 0.5, 1.0):
            close_to_endless(predicted(name, exact_values(name), 1.0, lambda_))


@pytest.mark.parametrize(
    ("horizon", "total", "to_go", "baseline"),
    [(1, 0.0625, 0.0625, 0.0), (2, 0.75, 0.375, 0.0625), (5, 10.3125, 4.0625, 0.625), (8, 39.0, 14.5, 1.75)],
)
def test_the_variance_of_reinforce_over_all_action_sequences(horizon, total, to_go, baseline):
    # H flips of a fair coin: π(1) = σ(θ) at θ = 0 and r = a, so ∇J = H/4. All 2^H sequences are equally likely and each
    # has its own column, so the mean and the variance are exact. The baseline is V = (H − t)/2.
    actions = np.array(list(np.ndindex(*(2,) * horizon))).T
    rollout = rollout_of(actions, terminated=np.broadcast_to(np.arange(horizon)[:, None] == horizon - 1, actions.shape))
    rollout = rollout._replace(observation=jnp.zeros(actions.shape, jnp.int32), action=jnp.asarray(actions, jnp.int32))
    values = values_of(np.broadcast_to((horizon - np.arange(horizon)[:, None]) / 2, actions.shape))
    for estimator, variance in ((TotalReturn(), total), (RewardToGo(), to_go), (Baseline(), baseline)):
        weight = estimator(rollout, values, 1.0).weight
        # θ is the second logit; the first is 0.
        slope = np.asarray(ascent_of_episodes(softmax_agent(np.zeros((1, 2))), rollout, weight), np.float64)[:, 0, 1]
        assert slope.mean() == pytest.approx(horizon / 4, rel=1e-6)
        assert slope.var() == pytest.approx(variance, rel=1e-5, abs=1e-6)
