"""The agent: its inputs, its initial parameters, the units of its actions, and what it refuses."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import (
    LAWS,
    NUM_ENVS,
    SEEDS,
    actor_of,
    critic_of,
    fresh_agent,
    quick_jit,
    same,
    segments,
    softmax_agent,
    task_of,
    with_networks,
)
from hypothesis import given

from upslope.core.arrays import ACTIVATIONS
from upslope.engines.collect import AHEAD, Act
from upslope.environments.classic.cartpole import CartPole
from upslope.errors import UpslopeError
from upslope.learning.iteration import initialise, stack, weigh
from upslope.models.box_heads import BoxHead
from upslope.models.build import ModelSpec
from upslope.models.choice_heads import DiscreteHead
from upslope.models.description import from_json, to_json
from upslope.models.encoders import ENCODERS, BoxEncoder, encoder_of
from upslope.models.heads import HEADS, head_of
from upslope.models.normaliser import RunningStatistics

include = quick_jit(RunningStatistics.update)
SPACES = {
    "a box": spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float32),
    "a box without bounds": spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
    "a box with one bound": spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 1.0]), dtype=np.float32),
    "a choice": spaces.Discrete(3, start=5),
    "several choices": spaces.MultiDiscrete([2, 3], start=[10, 20]),
    "a grid of choices": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "switches": spaces.MultiBinary((2, 3)),
}


def agent_for(action_space, observation_space=None, seed=0, **changes):
    observation_space = observation_space or spaces.Box(-1.0, 1.0, (4,), np.float32)
    return fresh_agent(jax.random.key(seed), observation_space, action_space, **changes)


@LAWS
@given(SEEDS)
def test_running_statistics_are_the_mean_and_variance_of_all_batches_together(seed):
    generator = np.random.default_rng(seed)
    batches = [seed % 100 + generator.normal(size=(6, 4, 3)) * [1, 10, 0.1] for _ in range(4)]
    masks = [generator.random((6, 4)) < 0.7 for _ in batches]
    vector, scalar = RunningStatistics.start((3,)), RunningStatistics.start(())
    for batch, mask in zip(batches, masks, strict=True):
        vector = include(vector, batch.astype(np.float32), mask)
        scalar = include(scalar, batch[..., 0].astype(np.float32), mask)
    seen = np.concatenate([batch[mask] for batch, mask in zip(batches, masks, strict=True)])
    assert vector.num_samples == len(seen)
    np.testing.assert_allclose(vector.mean, seen.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(vector.variance, seen.var(axis=0), rtol=1e-3)
    np.testing.assert_allclose(scalar.variance, seen[:, 0].var(), rtol=1e-3)


@pytest.mark.parametrize("batches_before", [0, 1])
@pytest.mark.parametrize("garbage", [0.0, np.inf, np.nan])
def test_running_statistics_do_not_see_what_did_not_happen(batches_before, garbage):
    statistics = RunningStatistics.start((2,))
    for _ in range(batches_before):
        statistics = include(statistics, jnp.asarray([[[1.0, 2.0]], [[3.0, 6.0]]]), jnp.ones((2, 1), bool))
    padding = jnp.full((2, 1, 2), garbage)
    after = include(statistics, padding, jnp.zeros((2, 1), bool))
    for ours, before in zip(after, statistics, strict=True):
        np.testing.assert_allclose(ours, before, rtol=1e-6)


def test_observations_are_normalised_and_kept_within_ten_deviations():
    agent = agent_for(SPACES["a choice"], normalize=["observations"])
    observation = jnp.asarray([3.0, -1.0, 0.5, 200.0])
    np.testing.assert_allclose(agent.features(observation), [3.0, -1.0, 0.5, 10.0], rtol=1e-6)
    statistics = RunningStatistics(jnp.asarray([1.0, 0, 0, 0]), jnp.asarray([4.0, 1, 1, 1]), jnp.float32(9))
    agent = replace(agent, normaliser=statistics)
    np.testing.assert_allclose(agent.features(observation), [1.0, -1.0, 0.5, 10.0], rtol=1e-6)
    # A one-hot observation has no scale to learn.
    assert not agent_for(SPACES["a choice"], spaces.Discrete(4), normalize=["observations"]).normalize_observations


def test_observations_become_flat_features():
    encoder = encoder_of(spaces.Box(-1.0, 1.0, (2, 3), np.float64), "world")
    observation = jnp.arange(24.0).reshape(4, 2, 3)
    np.testing.assert_array_equal(encoder.encode(observation), observation.reshape(4, 6))
    np.testing.assert_array_equal(encoder.encode(observation[1]), observation[1].reshape(6))
    encoder = encoder_of(spaces.Discrete(3, start=5), "world")
    np.testing.assert_array_equal(encoder.encode(jnp.asarray([[5, 7]])), [[[1, 0, 0], [0, 0, 1]]])


@pytest.mark.parametrize("name", SPACES)
def test_actions_are_members_of_their_space_for_one_state_and_for_many(name):
    space, agent = SPACES[name], agent_for(SPACES[name])

    @quick_jit
    def ask(observation, key):
        policy = agent.policy(observation)
        action = policy.sample(key)
        return action, policy.mode(), policy.log_prob(action), policy.entropy(), agent.value(observation)

    observation = jax.random.normal(jax.random.key(1), (5, 4))
    actions, _, *numbers = ask(observation, jax.random.key(2))
    assert all(number.shape == (5,) for number in numbers)
    to_environment = lambda action: agent.head.to_environment(np.asarray(action))  # noqa: E731 - a named expression
    assert all(space.contains(action) for action in to_environment(actions))
    action, mode, *numbers = ask(observation[3], jax.random.key(2))
    assert all(number.shape == () for number in numbers)
    assert space.contains(to_environment(action)[()]) and space.contains(to_environment(mode)[()])
    np.testing.assert_allclose(numbers[-1], agent.value(observation)[3], rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("observed", ["a vector", "a choice"])
def test_numpy_acts_as_the_compiled_agents_do(observed, name, activation):
    generator = np.random.default_rng(0)
    if observed == "a vector":
        observation_space, observation = None, 3 * generator.normal(size=(2, 5, 4)).astype(np.float32)
    else:
        observation_space, observation = spaces.Discrete(4, start=1), generator.integers(1, 5, (2, 5))
    settings = {"activation": activation, "normalize": ["observations"]}
    fresh = stack([agent_for(SPACES[name], observation_space, seed, **settings) for seed in range(2)])
    # All parameters and statistics of both agents are random and positive, so each of them affects the result.
    agents = jax.tree.map(lambda x: jnp.asarray(generator.uniform(0.2, 1.0, x.shape), jnp.float32), fresh)
    keys = jax.random.split(jax.random.key(0), 2)

    @quick_jit
    def compiled(agents, keys, observation, t):
        def one(agent, key, observation):
            policy = agent.policy(observation)
            action = policy.sample(jax.random.fold_in(key, t))
            return action, policy.log_prob(action), policy.mode()

        return jax.vmap(one)(agents, keys, observation)

    choose = Act().bind(agents, keys)
    for t in range(AHEAD + 2):
        action, log_prob = choose(observation, None, t)
        theirs, density, mode = compiled(agents, keys, observation, t)
        assert isinstance(action, np.ndarray) and action.dtype == theirs.dtype
        np.testing.assert_allclose(action, theirs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(log_prob, density, rtol=1e-4, atol=1e-5)
    one = jax.tree.map(lambda x: np.asarray(x)[1], agents)
    np.testing.assert_allclose(one.policy(observation[1]).mode(), mode[1], rtol=1e-4, atol=1e-5)


def test_counting_begins_where_the_space_says():
    to_environment = lambda name, action: head_of(SPACES[name], "world").to_environment(np.array(action))  # noqa: E731 - a named expression
    np.testing.assert_array_equal(to_environment("a choice", [0, 2]), [5, 7])
    np.testing.assert_array_equal(to_environment("several choices", [[0, 0], [1, 2]]), [[10, 20], [11, 22]])
    np.testing.assert_array_equal(to_environment("a grid of choices", [1, 2, 3, 4]), [[1, 2], [3, 4]])
    np.testing.assert_array_equal(to_environment("switches", [1, 0, 0, 1, 1, 0]), [[1, 0, 0], [1, 1, 0]])


@pytest.mark.parametrize(
    ("name", "centre", "half"),
    [("a box", [0, 5], [2, 5]), ("a box without bounds", [0] * 6, [1] * 6), ("a box with one bound", [1, 0], [1, 1])],
)
def test_the_network_works_in_units_of_the_half_range(name, centre, half):
    head = head_of(SPACES[name], "world")
    centre, half = np.array(centre, np.float32), np.array(half, np.float32)
    outputs = np.linspace(-1, 1, head.num_outputs).astype(np.float32)
    policy = head.distribution(jnp.asarray(outputs), jnp.full(head.num_outputs, -0.5))
    np.testing.assert_allclose(policy.mode(), centre + half * outputs, rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(policy.log_std), half * np.exp(-0.5), rtol=1e-6)


def test_box_actions_are_clipped_for_the_world_and_take_its_shape():
    clip = lambda name, action: head_of(SPACES[name], "world").to_environment(np.array(action, np.float32))  # noqa: E731 - a named expression
    np.testing.assert_array_equal(clip("a box", [[-3, 11], [1, 5]]), [[-2, 10], [1, 5]])
    np.testing.assert_array_equal(clip("a box with one bound", [-1e9, -1e9]), [0, -1e9])
    np.testing.assert_array_equal(clip("a box with one bound", [1e9, 1e9]), [1e9, 1])
    assert clip("a box without bounds", np.zeros((5, 6))).shape == (5, 2, 3)
    assert clip("a box without bounds", np.zeros(6)).shape == (2, 3)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Dict({}),
        spaces.Sequence(spaces.Discrete(2)),
    ],
)
def test_an_unknown_observation_space_is_refused_by_name(space):
    with pytest.raises(UpslopeError, match=rf"MyWorld-v0 .*{type(space).__name__}.*(Wrap|--wrapper).*Supported"):
        encoder_of(space, "MyWorld-v0")


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({}),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Text(5),
    ],
)
def test_an_unknown_action_space_is_refused_by_name(space):
    with pytest.raises(
        UpslopeError, match=rf"MyWorld-v0 .*action space {type(space).__name__}.*(Wrap|--wrapper).*Supported"
    ):
        head_of(space, "MyWorld-v0")


def test_whole_numbers_in_a_box_of_actions_are_refused_by_their_dtype():
    with pytest.raises(UpslopeError, match=r"MyWorld-v0 .*dtype int32.*declare Discrete or MultiDiscrete"):
        head_of(spaces.Box(0, 9, (2,), np.int32), "MyWorld-v0")


@pytest.mark.parametrize("name", SPACES)
def test_spaces_survive_strict_json(name):
    for record in (head_of(SPACES[name], "world"), encoder_of(SPACES[name], "world")):
        again = from_json(json.loads(json.dumps(to_json(record), allow_nan=False)), (*ENCODERS, *HEADS))
        assert again == record and hash(again) == hash(record) and type(again) is type(record)


@pytest.mark.parametrize("hidden_sizes", [(), (64, 64), (5, 300)])
def test_weights_begin_orthogonal_with_a_gain_of_their_own(hidden_sizes):
    agent = agent_for(SPACES["a box"], hidden_sizes=hidden_sizes)
    for network, head_gain in ((actor_of(agent).network, 0.01), (critic_of(agent), 1.0)):
        assert [w.shape[1] for w in network.weights[:-1]] == list(hidden_sizes)
        for weight, gain in zip(network.weights, [np.sqrt(2)] * len(hidden_sizes) + [head_gain], strict=True):
            weight = np.asarray(weight, np.float64)
            small = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
            np.testing.assert_allclose(small, gain**2 * np.eye(len(small)), atol=1e-6 * gain**2)
        assert not any(np.any(bias) for bias in network.biases)
    assert np.all(actor_of(agent_for(SPACES["a box"], log_std_init=-1.0)).log_std == -1.0)
    policy = agent_for(SPACES["a choice"]).policy(jnp.ones((1, 4)))
    assert policy.entropy()[0] == pytest.approx(np.log(3), abs=1e-3), "the initial policy has no preference"


# Batched QR decompositions in one compiled program used to hang XLA for some numbers of seeds.
@pytest.mark.parametrize("num_seeds", [1, 2, 3, 8, 32])
def test_any_number_of_seeds_is_initialised_each_with_its_own_weights(num_seeds):
    world = CartPole()
    task = task_of(world, network={"hidden_sizes": (64, 64)})
    states = stack([initialise(task, seed) for seed in range(num_seeds)])
    assert all(leaf.shape[0] == num_seeds for leaf in jax.tree.leaves(states))
    first = np.asarray(actor_of(states.learner.agent).network.weights[0])
    assert len(np.unique(first[:, 0, 0])) == num_seeds
    assert same(jax.tree.map(lambda x: x[0], states.learner), initialise(task, 0).learner)


def test_rewards_are_scaled_by_the_deviation_of_the_discounted_return_and_nothing_else():
    # G = r + γG is accumulated forward within each episode and across segments. The scale is 1/std of all G so far.
    task = task_of(CartPole(), model=ModelSpec(BoxEncoder((1,)), DiscreteHead(2)), gamma=0.9, num_envs=NUM_ENVS)
    state = initialise(task, 0)
    table = softmax_agent(np.zeros((1, 2)))
    agent = replace(table, model=replace(table.model, encoder=BoxEncoder((1,))), normalize_rewards=True)
    # This critic's value would be noticed if it leaked into the rewards.
    agent = with_networks(agent, critic=replace(critic_of(agent), biases=(jnp.full(1, 3.0),)))
    state = state._replace(learner=state.learner._replace(agent=agent))
    weigh_once = quick_jit(partial(weigh, task))
    seen, running = [], np.zeros(NUM_ENVS)
    for seed in range(3):
        rollout, _ = segments(seed)
        state, scaled, _, _ = weigh_once(state, rollout)
        is_end = np.asarray(rollout.terminated | rollout.truncated | ~rollout.valid)
        for t in range(len(is_end)):
            running = np.asarray(rollout.reward[t]) + 0.9 * running
            seen.extend(running[np.asarray(rollout.valid[t])])
            running = np.where(is_end[t], 0.0, running)
        expected = np.asarray(rollout.reward) / np.std(seen)
        np.testing.assert_allclose(scaled.reward, expected, rtol=1e-3)
        assert same(scaled._replace(reward=rollout.reward), rollout), "the other facts are unchanged"


def test_an_agents_log_std_belongs_to_continuous_actions_alone():
    assert actor_of(agent_for(SPACES["switches"])).log_std.shape == (0,)
    assert actor_of(agent_for(SPACES["a box without bounds"])).log_std.shape == (6,)
    assert isinstance(actor_of(agent_for(SPACES["a box"])).head, BoxHead)


def test_a_fresh_state_has_the_types_of_a_trained_one():
    # A weak type would force every program to be compiled again after the first iteration.
    state = initialise(task_of(CartPole()), 0)
    assert [leaf for leaf in jax.tree.leaves(state) if leaf.aval.weak_type] == []
