"""Health metrics of the networks' parts: each planted fault affects only its own metric, and fresh networks are
healthy."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from upslope.core.types import Credit, Rollout
from upslope.learning.batch import batch_of
from upslope.learning.health_of_parts import NAMES, has_parts, of_parts
from upslope.models.agent import initialise_agent
from upslope.models.build import ModelSpec
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of
from upslope.models.model import start_memory

T, N, ACTIONS = 16, 4, 3
VECTOR = spaces.Box(-1, 1, (4,), np.float32)
BOARD = spaces.Box(0, 255, (6, 6, 2), np.uint8)
SCALES = spaces.Dict({"far": spaces.Box(-1, 1, (2,), np.float32), "near": spaces.Box(-1, 1, (2,), np.float32)})
DRAW = np.random.default_rng(0)


def drawn(space, scale=1.0):
    if isinstance(space, spaces.Dict):
        return {key: drawn(part, scale if key == "far" else 1.0) for key, part in space.items()}
    if space.dtype == np.uint8:
        return DRAW.integers(0, 3, (T, N, *space.shape)).astype(np.uint8)
    return (scale * DRAW.standard_normal((T, N, *space.shape))).astype(np.float32)


def measured(space, change=lambda model: model, scale=1.0, mask=None, **settings):
    """Return the metrics of a fresh model to which `change` was applied."""
    spec = ModelSpec(encoder_of(space, ""), head_of(spaces.Discrete(ACTIONS), ""), {"hidden_sizes": (16,)} | settings)
    agent = equinox.tree_at(lambda a: a.model, initialise_agent(jax.random.key(0), spec), replace_fn=change)
    observation, no = drawn(space, scale), np.zeros((T, N), bool)
    zeros = np.zeros((T, N), np.float32)
    action = np.zeros((T, N), np.int32)
    rollout = Rollout(
        observation=observation, action=action, reward=zeros, terminated=no, truncated=no,
        next_observation=observation, behaviour_log_prob=zeros, valid=~no,
        action_mask=None if mask is None else np.broadcast_to(mask, (T, N, ACTIONS)),
    )  # fmt: skip
    memory = start_memory(agent.model, N)
    rollout = jax.tree.map(jnp.asarray, rollout)
    batch = batch_of(agent, rollout, Credit(jnp.asarray(zeros), jnp.asarray(zeros)), memory, 8, False)
    if not has_parts(agent.model, batch):
        return {}
    return dict(zip(NAMES, np.asarray(of_parts(agent.model, batch)).tolist(), strict=True))


def known(found):
    return {name for name, x in found.items() if x == x}


def test_a_plain_model_has_no_parts():
    assert measured(VECTOR) == {}


def test_the_mass_of_forbidden_actions_is_that_of_the_softmax():
    # All logits are equal except the last, which is larger by ln 2: π = (1, 1, 2) / 4. The last action is forbidden.
    def biased(model):
        last = lambda m: (m.actor.network.weights[-1], m.actor.network.biases[-1])  # noqa: E731
        return equinox.tree_at(last, model, (jnp.zeros((16, 3)), jnp.array([0.0, 0.0, np.log(2.0)])))

    found = measured(VECTOR, biased, mask=np.array([True, True, False]))
    assert known(found) == {"forbidden_mass"} and found["forbidden_mass"] == pytest.approx(0.5, abs=1e-6)


def scaled_cell(factor):
    def change(model):
        cells = lambda m: (m.actor.cell, m.critic.cell)  # noqa: E731
        return equinox.tree_at(cells, model, replace_fn=lambda cell: jax.tree.map(lambda x: factor * x, cell))

    return change


@pytest.mark.parametrize("memory", ["gru", "lstm", "lru"])
def test_a_fresh_memory_is_neither_dead_nor_saturated(memory):
    found = measured(VECTOR, memory=memory, memory_size=16)
    assert known(found) == {"memory_saturated", "memory_dead"}
    assert found["memory_saturated"] == 0 and found["memory_dead"] < 0.1


def test_a_memory_that_is_stuck_is_found():
    assert measured(VECTOR, scaled_cell(0.0), memory="gru", memory_size=16)["memory_dead"] == 1

    def pushed(model):
        """Set the bias of the new state far above 0, and close the gate that keeps the old state."""
        bias = jnp.concatenate([jnp.zeros(16), jnp.full(16, -50.0), jnp.full(16, 50.0)])
        return equinox.tree_at(lambda m: (m.actor.cell.layer.bias, m.critic.cell.layer.bias), model, (bias, bias))

    assert measured(VECTOR, pushed, memory="gru", memory_size=16)["memory_saturated"] == 1


def test_an_encoder_that_has_died_is_found():
    alive = measured(BOARD)
    assert known(alive) == {"encoder_dead"} and alive["encoder_dead"] < 0.7

    def dies(model):
        last = lambda m: m.actor.pictures[0].last.bias  # noqa: E731
        return equinox.tree_at(last, model, replace_fn=lambda bias: bias - 1e3)

    assert measured(BOARD, dies)["encoder_dead"] == 1


def test_the_share_of_a_key_is_that_of_its_variance():
    # Two numbers have deviation 100 and two have deviation 1, so the first key has 20,000 of the total variance of
    # 20,002.
    found = measured(SCALES, scale=100.0)
    assert known(found) == {"key_share", "key_index"} and found["key_index"] == 0
    assert 1 - found["key_share"] == pytest.approx(1e-4, rel=0.5)
    assert measured(SCALES)["key_share"] == pytest.approx(0.5, abs=0.15)
