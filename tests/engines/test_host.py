"""Gymnasium environments on the host and compiled environments yield the same rollouts, and the rollouts are
correct."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import actor_of, fresh_agent, users_jit, with_networks
from user_environments import Counting, Walk, double_precision, several_choices

import upslope
from upslope.core.types import Rollout
from upslope.engines.collect import Act, collect_host, collect_host_episodes
from upslope.engines.columns import HostColumns
from upslope.environments.classic.cartpole import CartPole
from upslope.environments.registry import HostEnvironment, make
from upslope.learning.collect import begin, collect, collect_episodes
from upslope.models.agent import Agent
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

START = np.array([0.01, -0.02, 0.03, 0.04], np.float32)
FACTS = ("observation", "action", "reward", "terminated", "truncated", "next_observation")
SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}


class SameStart(CartPole):
    """CartPole in which every episode starts in the same state, so that the environment is deterministic."""

    def reset(self, key: Any) -> tuple[Any, Any]:
        return jnp.asarray(START), jnp.asarray(START)


class OnTheHost(gymnasium.Env):
    """A Gymnasium environment with the dynamics of the compiled environment."""

    world = SameStart()
    dynamics = staticmethod(users_jit(world.step))
    observation_space, action_space = world.observation_space, world.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        self.state = jnp.asarray(START)
        return START.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.state, t = self.dynamics(jax.random.key(0), self.state, jnp.int32(action))
        return np.asarray(t.observation), float(t.reward), bool(t.terminated), False, {}


def decided_agent(weights: list[float]) -> Agent:
    """Return a CartPole agent that pushes right, with a probability of practically 1, if weights · s > 0."""
    world = CartPole()
    agent = fresh_agent(jax.random.key(0), world.observation_space, world.action_space, hidden_sizes=(1,))
    layers = (jnp.asarray(weights)[:, None] * 1e6, jnp.asarray([[-1e6, 1e6]]))
    actor = actor_of(agent)
    return with_networks(agent, replace(actor, network=replace(actor.network, weights=layers)))


BALANCES = [0.1, 0.3, 1.0, 1.0]
"""Weights that keep the pole up for 500 steps from `START`."""
FALLS = [0.0, 0.0, -1.0, 0.0]


def columns_of(world: HostEnvironment, num_envs: int = 1, limit: int | None = None) -> HostColumns:
    encoder, head = encoder_of(world.observation_space, world.name), head_of(world.action_space, world.name)
    return HostColumns(world, encoder, head, [0], num_envs, limit)


def host_facts(
    world: HostEnvironment, agent: Agent, num_steps: int, num_envs: int = 1, limit: int | None = None
) -> Rollout:
    """Collect `num_steps` steps [T, N] of one seed."""
    columns, agents = columns_of(world, num_envs, limit), jax.tree.map(lambda x: x[None], agent)
    columns.begin(range(num_envs))
    rollout, _ = collect_host(columns, Act().bind(agents, jax.random.split(jax.random.key(1), 1)), num_steps, {})
    return jax.tree.map(lambda x: np.asarray(x)[0], rollout)


@pytest.mark.parametrize(("weights", "steps"), [(BALANCES, 520), (FALLS, 60)])
def test_host_and_compiled_give_the_same_facts(weights: list[float], steps: int):
    agent, world = decided_agent(weights), SameStart()
    start = begin(world, agent, jax.random.key(0), 1)
    _, compiled, _ = users_jit(partial(collect, world, num_steps=steps, max_episode_steps=500))(
        agent, start, jax.random.key(2)
    )
    host = host_facts(make(OnTheHost), agent, steps, limit=500)
    for name in FACTS:
        np.testing.assert_allclose(getattr(host, name), getattr(compiled, name), atol=1e-5, err_msg=name)
    is_end = np.asarray(compiled.terminated | compiled.truncated)[:, 0]
    if weights is BALANCES:
        # The first episode has 500 steps and ends only because of the limit. The next one has 20 steps so far.
        assert np.flatnonzero(is_end).tolist() == [499]
        assert host.truncated[499, 0] and not host.terminated[499, 0]
    else:
        assert is_end.sum() > 2 and not np.asarray(host.truncated).any()


def test_each_step_and_column_of_a_compiled_rollout_is_sampled_independently():
    # Both pushes are equally likely, so independent pairs agree half of the time. The tolerance is five standard
    # deviations, each 1/(2√n).
    world, undecided = CartPole(), decided_agent([0.0] * 4)
    start = begin(world, undecided, jax.random.key(0), 32)
    _, rollout, finished = collect(world, undecided, start, jax.random.key(2), 512, 5)
    right = np.asarray(rollout.action)
    for agreed in (right == 1, right[1:] == right[:-1], right[:, 1:] == right[:, :-1]):
        assert abs(agreed.mean() - 0.5) < 5 / (2 * agreed.size**0.5)
    begun = np.asarray(rollout.observation)[1:][np.asarray(finished.done)[:-1]]
    assert len(begun) > 1000 and len(np.unique(begun, axis=0)) == len(begun)


def test_the_compiled_cartpole_is_gymnasiums_step_by_step():
    # Gymnasium computes in float64, so rounding errors would add up. Each step therefore starts from a recorded state.
    world = make("CartPole-v1")
    assert isinstance(world, HostEnvironment)
    rollout = host_facts(world, decided_agent([0.0, 0.1, 0.3, 1.0]), 200, num_envs=3, limit=world.max_episode_steps)
    step = jax.jit(jax.vmap(jax.vmap(lambda s, a: CartPole().step(jax.random.key(0), s, a)[1])))
    answered = step(rollout.observation, rollout.action)
    np.testing.assert_allclose(answered.observation, rollout.next_observation, atol=1e-5)
    np.testing.assert_array_equal(answered.reward, rollout.reward)
    np.testing.assert_array_equal(answered.terminated, rollout.terminated)


def test_the_limit_of_gymnasium_truncates():
    world = make("CartPole-v1")
    assert isinstance(world, HostEnvironment)
    assert world.max_episode_steps == 500 == CartPole().max_episode_steps
    rollout = host_facts(world, decided_agent(BALANCES), 500, limit=world.max_episode_steps)
    assert np.flatnonzero(rollout.truncated[:, 0]).tolist() == [499]
    assert not rollout.terminated.any()


def test_every_successor_is_the_true_one():
    agent = fresh_agent(jax.random.key(0), Counting().observation_space, Counting().action_space)
    rollout = host_facts(make(Counting), agent, 30, num_envs=2, limit=None)
    # Episodes last 7 steps, so row t of the rollout must be step t mod 7 of episode t div 7.
    t = np.arange(30)
    for n in range(2):
        np.testing.assert_array_equal(rollout.observation[:, n], np.stack([t // 7, t % 7], axis=1))
        np.testing.assert_array_equal(rollout.next_observation[:, n], np.stack([t // 7, t % 7 + 1], axis=1))
        np.testing.assert_array_equal(rollout.reward[:, n], t % 7 + 1)
        np.testing.assert_array_equal(rollout.terminated[:, n], t % 7 == 6)
    assert not rollout.truncated.any()
    assert rollout.valid.all()


@pytest.mark.parametrize("limit", [4, 7, 9])
def test_a_limit_truncates_before_the_end_only(limit: int):
    agent = fresh_agent(jax.random.key(0), Counting().observation_space, Counting().action_space)
    columns, agents = columns_of(make(Counting), 2, limit), jax.tree.map(lambda x: x[None], agent)
    keys = jax.random.split(jax.random.key(1), 1)
    rollout, ends = collect_host_episodes(columns, Act().bind(agents, keys), np.ones(1, bool), {})
    length = min(limit, 7)
    assert rollout.valid.shape == (1, length, 2)
    assert ends.length.tolist() == [length] * 2
    assert ends.episode_return.tolist() == [length * (length + 1) / 2] * 2
    assert rollout.terminated[0, -1].tolist() == [limit >= 7] * 2
    # An episode that terminates at its limit is also truncated, as with Gymnasium's TimeLimit.
    assert rollout.truncated[0, -1].tolist() == [limit <= 7] * 2
    np.testing.assert_array_equal(rollout.next_observation[0, -1], [[0, length]] * 2)


def test_columns_that_have_ended_wait_in_whole_episodes():
    def lengths() -> Iterator[int]:
        yield from (9, 3, 3, 5)  # the first environment is created only to read its spaces

    take = lengths()
    agent = fresh_agent(jax.random.key(0), Counting().observation_space, Counting().action_space)
    columns = columns_of(make(lambda: Counting(next(take))), 3)
    agents, keys = jax.tree.map(lambda x: x[None], agent), jax.random.split(jax.random.key(1), 1)
    rollout, ends = collect_host_episodes(columns, Act().bind(agents, keys), np.ones(1, bool), {})
    np.testing.assert_array_equal(rollout.valid[0], np.arange(5)[:, None] < np.array([3, 3, 5]))
    assert rollout.reward[0].sum(axis=0).tolist() == [6, 6, 15]
    assert sorted(ends.length.tolist()) == [3, 3, 5]


@pytest.mark.parametrize("environment", ["jax:CartPole-v1", "CartPole-v1", Walk, "user_environments:Walk"])
def test_max_episode_steps_replaces_the_limit(environment: Any, tmp_path):
    run = upslope.train(environment, steps=96, max_episode_steps=6, folder=tmp_path, quiet=True, preset=False, **SMALL)
    lengths = run.episodes()["length"]
    assert lengths.max() == 6
    assert lengths.size >= 12


def test_a_compiled_world_is_truncated_at_an_override():
    agent, world = decided_agent(BALANCES), SameStart()
    rollout, finished = collect_episodes(world, agent, jax.random.key(0), 2, 11)
    assert finished.length[-1].tolist() == [11, 11]
    assert rollout.truncated[-1].all() and not rollout.terminated.any() and rollout.valid.all()


@pytest.mark.parametrize("algorithm", ["ppo", "reinforce"])
def test_episodes_are_what_the_environment_counted(algorithm: str, tmp_path):
    Counting.finished.clear()
    settings = SMALL if algorithm == "ppo" else {"num_envs": 2, "hidden_sizes": (8,)}
    run = upslope.train(
        Counting, algorithm, steps=224, seeds=2, folder=tmp_path, quiet=True, max_episode_steps=50, **settings
    )
    episodes = run.episodes()
    assert [(r, n) for r, n in zip(episodes["return"], episodes["length"], strict=True)] == Counting.finished
    for seed in (0, 1):
        rows, last = episodes[episodes["seed"] == seed], run.metrics()[-1]["step"]
        assert (np.diff(rows["step"]) >= 0).all()
        # All other steps belong to one of the two unfinished episodes.
        assert 0 <= last - rows["length"].sum() < 2 * 7
        if algorithm == "reinforce":
            assert last == rows["length"].sum() == rows["step"][-1] == 224
        for row in rows:
            assert row["return"] == 28 and row["length"] == 7


@pytest.mark.parametrize("world", ["jax:CartPole-v1", "CartPole-v1"])
def test_whole_episodes_add_up_to_the_steps(world: str, tmp_path):
    run = upslope.train(
        world, "reinforce", steps=300, folder=tmp_path, quiet=True, num_envs=3, max_episode_steps=60, hidden_sizes=(8,)
    )
    episodes, metrics = run.episodes(), run.metrics()
    assert episodes["length"].sum() == metrics[-1]["step"] >= 300
    np.testing.assert_array_equal(episodes["return"], episodes["length"])  # CartPole gives a reward of 1 per step
    assert sum(row["episode/count"] for row in metrics) == episodes.size == 3 * len(metrics)
    for row, chosen in zip(metrics, episodes["return"].reshape(-1, 3), strict=True):
        assert row["episode/return"] == pytest.approx(chosen.mean())


@pytest.mark.parametrize("create", [double_precision, several_choices])
def test_other_spaces_train_on_the_host(create: Any, tmp_path):
    run = upslope.train(create, steps=64, folder=tmp_path, quiet=True, **SMALL)
    assert set(run.episodes()["length"]) == {5}
    space = create().observation_space
    assert isinstance(space, spaces.Box)
    action = run.load()(np.zeros(space.shape, space.dtype))
    assert create().action_space.contains(action if action.ndim else action.item())
