"""DeepSea matches a second implementation of its published rules in plain Python."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upslope.environments.deep_sea import DeepSea
from upslope.errors import UpslopeError


def by_hand(actions, right, cost):
    """Return the (cells, rewards) of an episode under the rules of Osband et al. (2020)."""
    size, column, cells, rewards = len(right), 0, [0], []
    for row, action in enumerate(actions):
        goes_right = action == right[row][column]
        reward = -cost / size if goes_right else 0.0
        if goes_right and row == column == size - 1:
            reward += 1.0
        column = min(column + 1, size - 1) if goes_right else max(column - 1, 0)
        cells.append((row + 1) * size + column if row + 1 < size else size * size)
        rewards.append(reward)
    return cells, rewards


@pytest.fixture(scope="module")
def world():
    return DeepSea(size=4, seed=3)


def test_every_episode_of_a_small_sea_follows_the_rules(world):
    right = world.leads_right.astype(int)
    assert 0 < right.sum() < right.size
    episodes = np.asarray(list(product((0, 1), repeat=4)), np.int32)

    def play(actions):
        def step(state, action):
            state, transition = world.step(jax.random.key(0), state, action)
            return state, transition

        return jax.lax.scan(step, world.reset(jax.random.key(0))[0], actions)[1]

    found = jax.jit(jax.vmap(play))(jnp.asarray(episodes))
    for k, actions in enumerate(episodes):
        cells, rewards = by_hand(actions, right, 0.01)
        assert np.asarray(found.observation[k]).tolist() == cells[1:]
        np.testing.assert_allclose(np.asarray(found.reward[k]), rewards, atol=1e-7)
    assert np.asarray(found.terminated).tolist() == [[False, False, False, True]] * 16
    # Only one of the 2^4 action sequences finds the treasure; its return is 1 − 0.01.
    returns = np.asarray(found.reward).sum(axis=1)
    assert (returns > 0.5).sum() == 1 and returns.max() == pytest.approx(0.99)


def test_the_map_belongs_to_its_seed_and_can_be_left_out():
    assert (DeepSea(10, seed=1).leads_right == DeepSea(10, seed=1).leads_right).all()
    assert (DeepSea(10, seed=1).leads_right != DeepSea(10, seed=2).leads_right).any()
    assert DeepSea(10, randomize_actions=False).leads_right.all()


@pytest.mark.parametrize(
    ("arguments", "words"), [({"size": 1}, "from 2 to"), ({"size": 10**6}, "1000000"), ({"seed": -1}, "-1")]
)
def test_impossible_seas_are_refused(arguments, words):
    with pytest.raises(UpslopeError, match=words):
        DeepSea(**arguments)
