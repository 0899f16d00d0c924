"""Simulated play agrees with known values, which come from linear algebra for finite environments and from closed forms
for probes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from upslope.environments.compiled import COMPILED
from upslope.environments.tabular import Tabular, delayed_key, gridworld, short_corridor
from upslope.errors import UpslopeError

# Sutton & Barto (2018), example 13.1, solved independently. By hand for p = π(right) = 1/2: v₂ = −1 + v₁/2,
# v₁ = −1 + (v₀ + v₂)/2 and v₀ = −1 + (v₀ + v₁)/2 give −6, −10, −12; the expected number of steps is −v₀; and
# dJ/dlogit = p (1 − p) dJ/dp = 8/4.
SHORT_CORRIDOR = {
    # p: (v0, v1, v2, ∂J/∂logit of right)
    0.05: (-82.10526315789474, -62.10526315789474, -60.0, 75.89473684210526),
    0.25: (-18.666666666666668, -14.666666666666666, -12.0, 11.333333333333332),
    0.5: (-12.0, -10.0, -6.0, 2.0),
    0.59: (-11.657709797436958, -9.962794543199669, -5.084745762711865, -0.09838776353865158),
    0.75: (-13.333333333333334, -12.0, -4.0, -4.666666666666667),
    0.95: (-44.21052631578944, -43.15789473684206, -3.157894736842105, -37.78947368421049),
}


def random_world(seed=0, num_states=6, num_actions=3, num_observations=4):
    """Create a random environment in which several states share an observation, several are initial, and two are
    terminal."""
    generator = np.random.default_rng(seed)
    terminal = np.arange(num_states) >= num_states - 2
    start = generator.dirichlet(np.ones(num_states)) * ~terminal
    return Tabular(
        transition=generator.dirichlet(np.ones(num_states), (num_states, num_actions)),
        reward=generator.normal(size=(num_states, num_actions, num_states)),
        start=start / start.sum(),
        terminal=terminal,
        observation_of=np.arange(num_states) % num_observations,
        max_episode_steps=50,
    )


def random_logits(world, seed=1):
    return np.random.default_rng(seed).normal(size=(world.observation_space.n, world.action_space.n))


def play(world, choose, num_episodes, num_steps, gamma, seed=0):
    """Play episodes with only `reset` and `step`; return each one's discounted return and first observation.

    `choose(key, observation)` selects the action. Rewards count until an episode terminates, for at most `num_steps`
    steps.
    """

    def episode(key):
        keys = jax.random.split(key, num_steps + 1)
        state, first = world.reset(keys[0])

        def advance(carry, step_key):
            state, observation, discount = carry
            action_key, world_key = jax.random.split(step_key)
            state, transition = world.step(world_key, state, choose(action_key, observation))
            # Ignore rewards after termination.
            following = gamma * discount * ~transition.terminated
            return (state, transition.observation, following), discount * transition.reward

        _, rewards = jax.lax.scan(advance, (state, first, jnp.float32(1.0)), keys[1:])
        return jnp.sum(rewards), first

    returns, first = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(seed), num_episodes))
    return np.asarray(returns, np.float64), first


def sampler(policy):
    """Return a function that acts according to a table π [O, A]."""
    logits = jnp.log(jnp.asarray(policy, jnp.float32))
    return lambda key, observation: jax.random.categorical(key, logits[observation])


@pytest.mark.parametrize("right", SHORT_CORRIDOR)
def test_short_corridor_equals_the_books(right):
    world, policy = short_corridor(), np.array([[1 - right, right]])
    *values, slope = SHORT_CORRIDOR[right]
    np.testing.assert_allclose(world.state_values(policy, 1.0), [*values, 0.0], rtol=1e-10)
    assert world.expected_return(policy, 1.0) == pytest.approx(values[0], rel=1e-10)
    np.testing.assert_allclose(world.policy_gradient(np.log(policy), 1.0), [[-slope, slope]], rtol=1e-9)


def test_the_best_corridor_policy_is_the_books():
    # p* = 2 − √2 and J* = −(6 + 4√2): the gradient vanishes there, and neighbouring policies on both sides are worse.
    world, best = short_corridor(), 2 - np.sqrt(2)
    value_at = lambda right: world.expected_return(np.array([[1 - right, right]]), 1.0)  # noqa: E731
    assert value_at(best) == pytest.approx(-(6 + 4 * np.sqrt(2)), rel=1e-12)
    assert value_at(best) > max(value_at(best - 0.01), value_at(best + 0.01))
    np.testing.assert_allclose(world.policy_gradient(np.log([[1 - best, best]]), 1.0), 0, atol=1e-12)


@pytest.mark.parametrize("horizon", [None, 1, 7])
@pytest.mark.parametrize(
    ("world", "gamma"),
    [(short_corridor(), 1.0), (random_world(), 1.0), (random_world(), 0.9), (gridworld(slip=0.3), 0.95)],
)
def test_the_gradient_is_the_slope_of_the_expected_return(world, gamma, horizon):
    logits, step = random_logits(world), 1e-5
    slope = np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        moved = [logits.copy(), logits.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        high, low = (world.expected_return(softmax(each, axis=-1), gamma, horizon) for each in moved)
        slope[index] = (high - low) / (2 * step)
    # The errors of central differences are of order step² and 1e-16 / step.
    np.testing.assert_allclose(world.policy_gradient(logits, gamma, horizon), slope, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("horizon", [None, 1, 5])
def test_state_values_are_the_policys_mean_of_action_values(horizon):
    world = random_world()
    policy = softmax(random_logits(world), axis=-1)
    mean = np.sum(policy[world.observation_of] * world.action_values(policy, 0.9, horizon), axis=-1)
    np.testing.assert_allclose(mean, world.state_values(policy, 0.9, horizon), atol=1e-12)
    assert not world.action_values(policy, 0.9, horizon)[world.terminal].any()


def value_by_sweeps(policy, gamma, sweeps, rows=3, columns=5, step_cost=0.1, slip=0.2):
    """Compute the gridworld's values from its rules alone, cell by cell and without any of `gridworld`'s arrays."""
    goal = (rows - 1, columns - 1)
    value = {(row, column): 0.0 for row in range(rows) for column in range(columns)}

    def move(cell, action):
        row, column = cell
        target = [(row - 1, column), (row, column + 1), (row + 1, column), (row, column - 1)][action]
        cell = target if target in value else cell
        return (1.0 if cell == goal else 0.0) - step_cost + (gamma * value[cell] if cell != goal else 0.0)

    for _ in range(sweeps):
        fresh = {}
        for row, column in value:
            outcomes = [move((row, column), action) for action in range(4)]
            slipped = slip * sum(outcomes) / 4
            probability = policy[row * columns + column]
            fresh[row, column] = sum(probability[a] * ((1 - slip) * outcomes[a] + slipped) for a in range(4))
        fresh[goal] = 0.0
        value = fresh
    return list(value.values())


@pytest.mark.parametrize(("horizon", "sweeps"), [(None, 400), (9, 9), (0, 0)])
def test_gridworld_values_equal_sweeps_over_its_rules(horizon, sweeps):
    world = gridworld(rows=3, columns=5, step_cost=0.1, slip=0.2)
    policy = softmax(random_logits(world), axis=-1)
    expected = value_by_sweeps(policy, 0.9, sweeps)
    np.testing.assert_allclose(world.state_values(policy, 0.9, horizon), expected, atol=1e-10)


@pytest.mark.parametrize("horizon", [None, 12])
@pytest.mark.parametrize(
    "world",
    [gridworld(step_cost=0.1), gridworld(3, 2, slip=0.4), short_corridor(), random_world(), delayed_key()],
)
def test_play_returns_what_the_algebra_says(world, horizon):
    policy, gamma, num_episodes = softmax(random_logits(world), axis=-1), 0.9, 10_000
    # Rewards after 200 steps have weight 0.9²⁰⁰ = 7e-10.
    returns, _ = play(world, sampler(policy), num_episodes, horizon or 200, gamma)
    difference = returns.mean() - world.expected_return(policy, gamma, horizon)
    assert abs(difference) < 4 * returns.std() / np.sqrt(num_episodes)


def test_states_are_drawn_as_often_as_the_arrays_say():
    world, keys = random_world(), jax.random.split(jax.random.key(3), 20_000)
    first, _ = jax.vmap(world.reset)(keys)
    later, _ = jax.vmap(world.step, (0, None, None))(keys, jnp.int32(2), jnp.int32(1))
    for drawn, probability in ((first, world.start), (later, world.transition[2, 1])):
        frequency = np.bincount(drawn, minlength=6) / len(keys)
        assert (np.abs(frequency - probability) <= 4 * np.sqrt(probability / len(keys))).all()


def test_the_key_alone_opens_the_end():
    world = delayed_key()
    policy = softmax(random_logits(world), axis=-1)
    # The path has eight steps, so the reward is discounted seven times.
    assert world.expected_return(policy, 0.9) == pytest.approx(0.9**7 * policy[0, 1], rel=1e-12)
    assert world.expected_return(policy, 1.0, horizon=7) == 0
    gradient, slope = world.policy_gradient(np.log(policy), 1.0), policy[0, 0] * policy[0, 1]
    np.testing.assert_allclose(gradient[0], [-slope, slope], rtol=1e-9)
    np.testing.assert_allclose(gradient[1:], 0, atol=1e-15)
    state, observation = world.reset(jax.random.key(0))
    seen, ends = [int(observation)], []
    for action in (1, 0, 0, 1, 0, 1, 1, 0):
        state, transition = world.step(jax.random.key(0), state, jnp.int32(action))
        seen.append(int(transition.observation))
        ends.append(bool(transition.terminated))
    assert seen == [0, 3, 5, 7, 9, 11, 13, 15, 17]
    assert ends == [False] * 7 + [True] and world.max_episode_steps == 8
    assert transition.reward == 1


def test_impossible_questions_are_refused():
    never = np.array([[1.0, 0.0]])
    with pytest.raises(UpslopeError, match="gamma < 1, or set a horizon"):
        short_corridor().state_values(never, 1.0)
    assert short_corridor().expected_return(never, 1.0, horizon=30) == -30
    assert short_corridor().expected_return(never, 0.9) == pytest.approx(-10)
    for wrong in (np.full((2, 2), 0.5), np.array([[1.0, 1.0]]), np.array([[2.0, -1.0]])):
        with pytest.raises(UpslopeError, match="policy"):
            short_corridor().state_values(wrong, 0.9)
    for arguments in ({"slip": 1.5}, {"rows": 1, "columns": 1}):
        with pytest.raises(UpslopeError, match="gridworld"):
            gridworld(**arguments)
    with pytest.raises(UpslopeError, match="length"):
        delayed_key(1)


PROBES = {
    # name: (an optimal action, the mean return of random play, the number of first observations, all equally likely)
    "probe/constant": (lambda seen: jnp.int32(0), 1.0, 1),
    "probe/observation": (lambda seen: jnp.int32(0), 0.0, 2),
    "probe/delay": (lambda seen: jnp.int32(0), 0.9, 1),
    "probe/action": (lambda seen: jnp.int32(1), 0.0, 1),
    "probe/both": (lambda seen: jnp.where(seen[0] > 0, 1, 0), 0.0, 2),
    # E(a − s/2)² = Var a + 1/4 = 1/3 + 1/4 for a uniform on [−1, 1].
    "probe/continuous": (lambda seen: 0.5 * seen, -7 / 12, 2),
    "probe/multidiscrete": (lambda seen: jnp.stack([seen[:2].argmax(), seen[2:].argmax()]), 1 / 6, 6),
    "probe/multibinary": (lambda seen: seen.astype(jnp.int8), 0.5, 8),
    "probe/truncation": (lambda seen: jnp.int32(0), 7.0, 1),
    # One of three actions is forbidden but would pay 100; the others pay ±1.
    "probe/mask": (lambda seen: jnp.where(seen[0] > 0, 1, 2), 100 / 3, 2),
    # Half of the choices are right, and the amount costs as much as in probe/continuous.
    "probe/hybrid": (lambda seen: {"choice": jnp.int32(seen[0] > 0), "amount": 0.25 * seen[1:]}, 1 / 2 - 19 / 48, 4),
}
HIDDEN = {
    # Probes whose observations do not show the state. name: (the best action given what is seen, the return of random
    # play)
    "probe/memory": (lambda seen, first: (first[0] + 1).astype(int), -1 / 3),
    "probe/image": (lambda seen, first: 2 * (jnp.argmax(seen.sum(1)) // 2) + jnp.argmax(seen.sum(0)) // 2, -1 / 2),
    "probe/dict": (lambda seen, first: 2 * seen["which"] + (seen["signs"][seen["which"]] > 0), -1 / 2),
    "probe/asymmetric": (lambda seen, first: (seen[0] > 0).astype(int), 1 / 4),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_the_value_of_a_hidden_state_is_what_the_best_play_of_what_is_seen_returns(name):
    """Play step by step and sum the discounted rewards. Random play takes every action with equal probability."""
    world, (best, expected) = COMPILED[name](), HIDDEN[name]
    count = 400

    def returns(choose: Any) -> Any:
        state, first = jax.vmap(world.reset)(jax.random.split(jax.random.key(0), count))
        exact, seen = world.exact_value(state, 0.9), first
        total, going = np.zeros(count), np.ones(count, bool)
        for t in range(world.max_episode_steps):
            state, now = jax.vmap(world.step, (None, 0, 0))(jax.random.key(0), state, choose(t, seen, first))
            total += np.where(going, 0.9**t * now.reward, 0.0)
            going, seen = going & ~np.asarray(now.terminated), now.observation
        assert not going.any(), "every episode ends within the limit"
        return total, exact

    total, exact = returns(lambda t, seen, first: jax.vmap(best)(seen, first))
    np.testing.assert_allclose(total, exact, rtol=1e-5)
    generator = np.random.default_rng(0)
    drawn, _ = returns(lambda t, seen, first: jnp.asarray(generator.integers(0, world.action_space.n, count)))
    scale = 0.9**10 if name == "probe/memory" else 1
    assert abs(drawn.mean() - expected * scale) < 4 * drawn.std() / np.sqrt(count)


NUM_EPISODES = 2000
# Far more steps than any probe has, so that a probe that fails to end is noticed. 0.9³⁰⁰ is negligible.
NUM_STEPS = 300


@pytest.mark.parametrize("name", PROBES)
def test_a_probes_value_is_what_the_best_play_returns(name):
    world, (best, _, num_first) = COMPILED[name](), PROBES[name]
    returns, first = play(world, lambda key, seen: best(seen), NUM_EPISODES, NUM_STEPS, 0.9)
    np.testing.assert_allclose(returns, world.exact_value(first, 0.9), rtol=1e-6, atol=1e-7)
    _, counts = np.unique(np.asarray(first), axis=0, return_counts=True)
    assert len(counts) == num_first
    assert np.abs(counts / NUM_EPISODES - 1 / num_first).max() < 4 / np.sqrt(4 * NUM_EPISODES)
    assert world.max_episode_steps == {"probe/delay": 2, "probe/truncation": 7}.get(name, 1)
    if name == "probe/delay":
        assert world.exact_value(jnp.ones(1), 0.9) == 1, "the second step has no delay left"


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_pays_random_play_what_chance_gives(name):
    world, (_, expected, _) = COMPILED[name](), PROBES[name]
    world.action_space.seed(0)
    drawn = [world.action_space.sample() for _ in range(NUM_EPISODES)]
    samples = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *drawn)

    def choose(key, seen):
        row = jax.random.randint(key, (), 0, NUM_EPISODES)
        return jax.tree.map(lambda x: x[row], samples)

    returns, _ = play(world, choose, NUM_EPISODES, NUM_STEPS, 0.9)
    # The pool of actions and the episodes played with them are both random samples, hence the factor 2.
    assert abs(returns.mean() - expected) <= 4 * returns.std() * np.sqrt(2 / NUM_EPISODES) + 1e-5
