"""The classic environments match Gymnasium's, and every compiled environment follows the protocol."""

from functools import partial
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upslope.environments.compiled import COMPILED

CLASSIC = ("CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0")
# Our environments compute in float32. Gymnasium's compute in float64 and round only the observation to float32. A step
# therefore agrees only up to a few multiples of 6e-8 of the largest intermediate number (Pendulum's angle grows to
# tens); the largest measured difference is 1.8e-6.
FLOAT32_TOLERANCE = 5e-6
# In float64, only the order of summation differs; the largest measured difference is 3e-12, at Acrobot's 28 rad/s.
FLOAT64_TOLERANCE = 1e-11
NUM_KEYS = 20_000


class Recorded(NamedTuple):
    """What Gymnasium's environment did, with one row per step. `state` is the state before the step, `successor` the
    one after it."""

    state: np.ndarray
    action: np.ndarray
    observation: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    successor: np.ndarray


def as_jax_action(action):
    """Convert Gymnasium's int64 Discrete actions to our int32."""
    action = np.asarray(action)
    return action.astype(np.int32) if action.dtype == np.int64 else action


def record(environment, num_steps, seed, choose=None, states=None):
    """Run Gymnasium's environment. If `states` are given, start each step from the next of them."""
    environment.action_space.seed(seed)
    environment.reset(seed=seed)
    rows = []
    for step in range(num_steps):
        if states is not None:
            environment.reset()
            environment.unwrapped.state = states[step].copy()
        state = np.array(environment.unwrapped.state, np.float64)
        action = environment.action_space.sample() if choose is None else choose(state)
        observation, reward, terminated, truncated, _ = environment.step(action)
        successor = np.array(environment.unwrapped.state, np.float64)
        # Gymnasium returns its internal state array, which it may modify later.
        rows.append((state, as_jax_action(action), observation.copy(), reward, terminated, successor))
        if terminated or truncated:
            environment.reset()
    return Recorded(*(np.stack(column) for column in zip(*rows, strict=True)))


def step_all(world, recorded, dtype=jnp.float32):
    """Take one step from each recorded state in our environment."""
    state, action = jnp.asarray(recorded.state, dtype), jnp.asarray(recorded.action)
    return jax.jit(jax.vmap(partial(world.step, jax.random.key(0))))(state, action)


def check_same(recorded, transition):
    """Assert that observations and rewards agree relative to their scale, and that `terminated` agrees exactly."""
    for ours, theirs in (
        (transition.observation, recorded.observation),
        (transition.reward[:, None], recorded.reward[:, None]),
    ):
        scale = np.maximum(1.0, np.abs(theirs).max(axis=0))
        assert np.max(np.abs(np.asarray(ours) - theirs) / scale) < FLOAT32_TOLERANCE
    # A state within rounding error of a threshold could differ, but these fixed seeds produce no such state.
    np.testing.assert_array_equal(transition.terminated, recorded.terminated)
    assert not np.any(transition.truncated)


def states_everywhere(name, num_states):
    """Draw states from ranges wide enough to trigger every clip, wrap and termination, which random play rarely
    does."""
    low, high = {
        "CartPole-v1": ([-2.5, -3, -0.22, -3], [2.5, 3, 0.22, 3]),
        "Pendulum-v1": ([-20, -8], [20, 8]),
        "Acrobot-v1": ([-np.pi, -np.pi, -4 * np.pi, -9 * np.pi], [np.pi, np.pi, 4 * np.pi, 9 * np.pi]),
        "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
        "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07]),
    }[name]
    states = np.random.default_rng(0).uniform(low, high, (num_states, len(low)))
    # Gymnasium's car stores its state in float32 from the first step on.
    return states.astype(np.float32) if name == "MountainCarContinuous-v0" else states


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CLASSIC)
def test_a_step_equals_gymnasiums_from_the_same_state(name, seed):
    recorded = record(gymnasium.make(name), 1000, seed)
    _, transition = step_all(COMPILED[name](), recorded)
    check_same(recorded, transition)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, {}) for name in CLASSIC),
        ("CartPole-v1", {"sutton_barto_reward": True}),
        ("Pendulum-v1", {"g": 9.81}),
        ("MountainCar-v0", {"goal_velocity": 0.03}),
        ("MountainCarContinuous-v0", {"goal_velocity": 0.03}),
    ],
)
def test_the_formulas_are_gymnasiums_everywhere_in_float64(name, arguments):
    recorded = record(gymnasium.make(name, **arguments), 2000, 0, states=states_everywhere(name, 2000))
    with jax.enable_x64(True):
        successor, transition = step_all(COMPILED[name](**arguments), recorded, jnp.float64)
    # Gymnasium rounds the car's state, which is of order 1, to float32.
    tolerance = 1e-7 if name == "MountainCarContinuous-v0" else FLOAT64_TOLERANCE
    np.testing.assert_allclose(successor, recorded.successor, atol=tolerance, rtol=0)
    check_same(recorded, transition)
    if name != "Pendulum-v1":
        assert 20 < recorded.terminated.sum() < 1980, "the states must include both outcomes"


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_an_action_beyond_the_bounds_is_treated_as_gymnasium_treats_it(name):
    remaining = iter(np.random.default_rng(0).uniform(-5, 5, (500, 1)).astype(np.float32))
    # Gymnasium's checking wrappers reject such an action, but the environment itself does not.
    recorded = record(gymnasium.make(name).unwrapped, 500, 0, choose=lambda state: next(remaining))
    _, transition = step_all(COMPILED[name](), recorded)
    check_same(recorded, transition)


def push_under_the_pole(state):
    return int(state[2] + state[3] > 0)


def push_with_the_motion(state):
    return np.array([1.0 if state[1] >= 0 else -1.0], np.float32)


def step_with_the_motion(state):
    return 2 if state[1] >= 0 else 0


@pytest.mark.parametrize(
    ("name", "choose", "num_steps", "arrives"),
    [
        ("CartPole-v1", None, 30, True),
        ("CartPole-v1", push_under_the_pole, 60, False),
        ("Pendulum-v1", None, 100, False),
        ("Acrobot-v1", None, 60, False),
        ("MountainCar-v0", step_with_the_motion, 150, True),
        ("MountainCarContinuous-v0", None, 200, False),
        ("MountainCarContinuous-v0", push_with_the_motion, 150, True),
    ],
)
def test_a_whole_trajectory_equals_gymnasiums(name, choose, num_steps, arrives):
    recorded = record(gymnasium.make(name), num_steps, 3, choose)
    assert recorded.terminated.any() == arrives
    # Use only the first episode, because our environment never resets itself.
    length = int(np.argmax(recorded.terminated)) + 1 if arrives else num_steps
    recorded = Recorded(*(column[:length] for column in recorded))
    first = jnp.asarray(recorded.state[0], jnp.float32)
    step = partial(COMPILED[name]().step, jax.random.key(0))
    _, transition = jax.lax.scan(step, first, jnp.asarray(recorded.action))
    # Rounding errors grow along the trajectory, and exponentially so for a falling pole. The largest measured
    # difference is 2e-6, or 5e-6 for a reward of −10.
    np.testing.assert_allclose(transition.observation, recorded.observation, atol=1e-5, rtol=0)
    np.testing.assert_allclose(transition.reward, recorded.reward, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(transition.terminated, recorded.terminated)


def test_one_step_of_cartpole_by_hand():
    # By hand from θ = 0 and F = ±10: u = 10/1.1, θ̈ = −u / (0.5 (4/3 − 0.1/1.1)) = −600/41, so θ̇ = −12/41; and
    # ẍ = u + 0.05/1.1 · 600/41 = 400/41, so ẋ = 8/41. The third row uses the same formulas from another state.
    states = jnp.array([[0, 0, 0, 0], [0, 0, 0, 0], [0.01, -0.02, 0.03, 0.04]], jnp.float32)
    expected = [
        [0, 0.1951219512195122, 0, -0.2926829268292683],
        [0, -0.1951219512195122, 0, 0.2926829268292683],
        [0.0096, 0.17467919574755525, 0.0308, -0.24306871796000815],
    ]
    step = jax.vmap(partial(COMPILED["CartPole-v1"]().step, jax.random.key(0)))
    np.testing.assert_allclose(step(states, jnp.array([1, 0, 1]))[0], expected, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CartPole-v1", [-0.05] * 4, [0.05] * 4),
        ("Pendulum-v1", [-np.pi, -1], [np.pi, 1]),
        ("Acrobot-v1", [-0.1] * 4, [0.1] * 4),
        ("MountainCar-v0", [-0.6, 0], [-0.4, 0]),
        ("MountainCarContinuous-v0", [-0.6, 0], [-0.4, 0]),
    ],
)
def test_the_first_state_is_drawn_as_gymnasium_draws_it(name, low, high):
    world, low, high = COMPILED[name](), np.array(low), np.array(high)
    state, observation = jax.jit(jax.vmap(world.reset))(jax.random.split(jax.random.key(1), NUM_KEYS))
    state = np.asarray(state, np.float64)
    environment = gymnasium.make(name)
    theirs = []
    for seed in range(500):
        environment.reset(seed=seed)
        theirs.append(np.array(environment.unwrapped.state))
    # Gymnasium's own draws pass the same test, which confirms that the bounds above are Gymnasium's.
    for drawn in (state, np.array(theirs)):
        assert (drawn >= low - 1e-6).all() and (drawn <= high + 1e-6).all()
        # The standard deviation of a uniform draw. The squared deviation from the mean has a standard deviation of
        # √(1.8 − 1) times the variance.
        deviation = (high - low) / np.sqrt(12)
        assert (np.abs(drawn.mean(0) - (low + high) / 2) <= 4 * deviation / np.sqrt(len(drawn)) + 1e-6).all()
        assert (np.abs(drawn.var(0) - deviation**2) <= 4 * deviation**2 * np.sqrt(0.8 / len(drawn)) + 1e-9).all()
    moving = state[:, high > low]
    correlation = np.atleast_2d(np.corrcoef(moving.T)) - np.eye(moving.shape[1])
    assert np.abs(correlation).max() < 4.5 / np.sqrt(NUM_KEYS), "each component has its own randomness"
    assert all(world.observation_space.contains(np.asarray(row)) for row in observation[:50])


@pytest.mark.parametrize("name", CLASSIC)
def test_the_first_observation_shows_the_first_state(name):
    state, observation = COMPILED[name]().reset(jax.random.key(2))
    environment = gymnasium.make(name).unwrapped
    environment.state = np.asarray(state)
    show = {"Pendulum-v1": "_get_obs", "Acrobot-v1": "_get_ob"}.get(name)
    np.testing.assert_allclose(observation, getattr(environment, show)() if show else state, atol=1e-6)


@pytest.mark.parametrize("name", CLASSIC)
def test_spaces_and_time_limit_are_gymnasiums(name):
    world, environment = COMPILED[name](), gymnasium.make(name)
    assert world.observation_space == environment.observation_space
    assert world.action_space == environment.action_space
    assert world.max_episode_steps == environment.spec.max_episode_steps


def described(space):
    """Return the shape and dtype of each array in a compiled environment's observations."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: described(part) for key, part in space.items()}
    is_index = isinstance(space, gymnasium.spaces.Discrete)
    return space.shape, np.dtype("int32") if is_index else space.dtype


def as_gymnasium(space, observation):
    """Convert an observation to Gymnasium's representation."""
    if isinstance(space, gymnasium.spaces.Dict):
        return {key: as_gymnasium(part, observation[key]) for key, part in space.items()}
    return np.asarray(observation)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("x64", [False, True])
def test_shapes_and_dtypes_are_those_of_the_spaces_and_stay(name, x64):
    # Enabling 64 bits exposes a forgotten dtype. A weak type would break the carry of a scan.
    with jax.enable_x64(x64):
        world, key = COMPILED[name](), jax.random.key(0)
        assert hash(world) == hash(world), "a world can be a static argument of jit"
        state, observation = jax.eval_shape(world.reset, key)
        action = jax.tree.map(as_jax_action, world.action_space.sample())
        successor, transition = jax.eval_shape(world.step, key, state, action)
        assert world.observation_space.contains(as_gymnasium(world.observation_space, world.reset(key)[1]))
    expected = described(world.observation_space)
    for seen in (observation, transition.observation):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), seen) == expected
    assert (transition.reward.shape, transition.reward.dtype) == ((), np.dtype("float32"))
    for flag in (transition.terminated, transition.truncated):
        assert (flag.shape, flag.dtype) == ((), np.dtype("bool"))
    assert successor == state
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, successor, observation, transition)))
