"""Columns whose episodes have ended restart, all together or one after another, and the others continue."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import fresh_agent, quick_jit

from upslope.environments.classic.cartpole import CartPole
from upslope.learning.collect import EnvState, begin_episodes, restarted


class CostlyCartPole(CartPole):
    """CartPole, declared to have a costly reset."""

    costly_reset = True


WORLD = CartPole()
AGENT: Any = fresh_agent(
    jax.random.key(0), WORLD.observation_space, WORLD.action_space, hidden_sizes=(4,), memory="gru", memory_size=3
)


@pytest.fixture(scope="module")
def running() -> EnvState:
    """Return five episodes in progress."""
    begun = begin_episodes(WORLD, AGENT, jax.random.split(jax.random.key(3), 5))
    return jax.tree.map(lambda x: x + 7, begun)


@pytest.mark.parametrize("kind", [CartPole, CostlyCartPole])
def test_what_is_done_begins_by_its_own_key_and_the_rest_goes_on(kind: type[CartPole], running: EnvState):
    world, keys = kind(), jax.random.split(jax.random.key(4), 5)
    restart = quick_jit(lambda done: restarted(world, AGENT, keys, done, running))
    for done in ([False, True, False, True, True], [False] * 5, [True] * 5):
        after = restart(np.asarray(done))
        for row, is_done in enumerate(done):
            expected = begin_episodes(world, AGENT, keys[row : row + 1]) if is_done else running
            for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(ours[row], theirs[0 if is_done else row], rtol=1e-6)
